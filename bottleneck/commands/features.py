"""Write the hidden states of a model over a corpus, with their targets and the head, to a folder.

MODEL is a run folder, trained here or imported, or with --transformers a folder or hub name of any
causal language model that the transformers library reads. The corpus is the run's own, or that of
--config; give the same command again to go on after an interruption.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from bottleneck.commands.flags import parse_command_with_data
from bottleneck.commands.parsing import Parser, whole
from bottleneck.errors import UserError


def main(argv: list[str]) -> int:
    """Returns the exit code; raises `UserError` where the model or the corpus cannot be had."""
    parser = Parser("python -m bottleneck features", description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="a run folder, such as runs/demo/full")
    parser.add_argument("--output", required=True, metavar="DIR", type=Path, help="a new folder")
    parser.add_argument("--step", type=whole(0), metavar="N", help="of the run (default: the last)")
    parser.add_argument(
        "--transformers", action="store_true", help="MODEL is one of the transformers library's"
    )
    parser.add_argument("--revision", metavar="R", help="of a hub name, with --transformers")
    parser.add_argument(
        "--tokens",
        type=whole(0),
        default=1_000_000,
        metavar="N",
        help="of the training split, for heads to be trained on (default: 1,000,000; 0 for none)",
    )
    parser.add_argument(
        "--heldout_tokens",
        type=whole(0),
        default=100_000,
        metavar="N",
        help="of the held-out split (default: 100,000)",
    )
    parser.add_argument(
        "--layer", type=whole(0), metavar="K", help="0 is the embedding (default: last)"
    )
    parser.add_argument(
        "--sequence_length",
        type=whole(1),
        metavar="L",
        help="of a sequence (default: as trained, or 1024)",
    )
    parser.add_argument(
        "--batch_size",
        type=whole(1, 2**16),
        default=8,
        metavar="B",
        help="sequences that go through the model together (default: 8)",
    )
    parser.add_argument(
        "--beside",
        nargs="+",
        type=Path,
        default=[],
        metavar="DIR",
        help="other finished sets, drawn in the same figure",
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    flags, data = parse_command_with_data(parser, argv)
    if not flags.tokens + flags.heldout_tokens:
        raise UserError("--tokens=0 and --heldout_tokens=0 leave nothing to do")
    if flags.transformers and data is None:
        raise UserError("--transformers needs a corpus: give --config, such as configs/pythia.py")
    if flags.revision and not flags.transformers:
        raise UserError("--revision is for --transformers; of a run folder take a --step")

    # Imported here, as they take seconds that `--help` need not wait for.
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
        length = min(model.max_length, 1024)
    else:
        from bottleneck.runs.reading import load_run

        run = load_run(flags.model)
        source = features.RunSource(run, flags.step)
        data = data or run.config.data
        length = run.config.train.sequence_length
    request = features.Request(
        tokens={"train": flags.tokens, "heldout": flags.heldout_tokens},
        sequence_length=flags.sequence_length or length,
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
