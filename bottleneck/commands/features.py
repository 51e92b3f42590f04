"""Write a model's hidden states over a corpus, with targets and head, to a folder.

MODEL is a run folder, trained here or imported. With --transformers it is a folder or hub name of
any causal language model of the transformers library. The corpus is the run's own, or that of
--config. Repeat the command to resume after an interruption.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from bottleneck.commands.flags import parse_command_with_data
from bottleneck.commands.parsing import Parser, option, switch, whole
from bottleneck.errors import UserError


def main(argv: list[str]) -> int:
    parser = Parser("python -m bottleneck features", description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="such as runs/demo/full")
    option(parser, "--output", Path, "folder to write", required=True)
    option(parser, "--step", whole(0), "step of the run (default: the last)")
    switch(parser, "--transformers", "MODEL is for the transformers library")
    option(parser, "--revision", str, "revision on the hub, with --transformers")
    option(parser, "--tokens", whole(0), "training tokens; 0 for none", 1_000_000)
    option(parser, "--validation_tokens", whole(0), "validation tokens; 0 for none", 100_000)
    option(parser, "--layer", whole(0), "0 is the embedding (default: the last)")
    length = "tokens in a sequence (default: as in training; at most 1024 with --transformers)"
    option(parser, "--sequence_length", whole(1), length)
    option(parser, "--batch_size", whole(1, 2**16), "sequences in a batch", 8)
    beside = "other finished feature folders, drawn in the same figure"
    parser.add_argument("--beside", nargs="+", type=Path, default=[], metavar="DIR", help=beside)
    dtypes = ("float32", "bfloat16", "float16")
    option(parser, "--dtype", str, "of the stored hidden states", dtypes[0], choices=dtypes)
    flags, data = parse_command_with_data(parser, argv)
    if not flags.tokens + flags.validation_tokens:
        raise UserError(
            "--tokens=0 and --validation_tokens=0 leave nothing to write; give one of them"
        )
    if flags.transformers and data is None:
        raise UserError("--transformers needs a corpus: give --config, such as configs/pythia.py")
    if flags.revision and not flags.transformers:
        raise UserError("--revision is for --transformers; for a run folder give --step")

    from bottleneck.drawing.style import save
    from bottleneck.frozen import extraction as features
    from bottleneck.frozen import features as feature_set
    from bottleneck.frozen.figures import features_figure
    from bottleneck.parallel import compile_cache

    compile_cache.use()
    if flags.transformers:
        from bottleneck.frozen.transformers_model import TransformersModel

        assert data is not None
        model = TransformersModel(flags.model, flags.revision)
        source: features.Source = model
        if data.tokenizer is None:
            data = dataclasses.replace(data, tokenizer=str(model.folder / "tokenizer.json"))
        trained_length = min(model.max_length, 1024)
    else:
        from bottleneck.runs.reading import load

        run = load(flags.model)
        source = features.RunSource(run, flags.step)
        data = data or run.config.data
        trained_length = run.config.train.sequence_length
    request = features.Request(
        tokens={"train": flags.tokens, "validation": flags.validation_tokens},
        sequence_length=flags.sequence_length or trained_length,
        layer=source.n_layers if flags.layer is None else flags.layer,
        dtype=flags.dtype,
        batch_size=flags.batch_size,
    )
    made = features.make_features(source, data, request, flags.output)
    for name, text in feature_set.describe(made.manifest).items():
        print(f"{name:<8} {text}")
    features.write_probe(made)
    figure = features_figure([flags.output, *flags.beside])
    print(f"figure   {save(figure, flags.output / 'features.png')}")
    return 0
