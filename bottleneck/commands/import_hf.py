"""Make a run folder of a released model (GPT-NeoX, GPT-2 or Llama, in safetensors).

MODEL is a folder, or a name on the Hugging Face hub. What comes of it is read like a run that was
trained here; several steps of one training go into one folder.
"""

from __future__ import annotations

from pathlib import Path

from bottleneck.commands.parsing import Parser, whole


def main(argv: list[str]) -> int:
    """Returns the exit code; raises `UserError` where the model cannot be had or understood."""
    parser = Parser("python -m bottleneck import_hf", description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="such as EleutherAI/pythia-70m")
    parser.add_argument("--workdir", required=True, type=Path, help="the run folder to make")
    parser.add_argument("--revision", metavar="R", help="of a name on the hub, such as step1000")
    parser.add_argument(
        "--step",
        type=whole(0),
        metavar="N",
        help="of the checkpoint (default: N of a revision or folder called stepN, else 0)",
    )
    flags = parser.parse_args(argv)

    # Imported here, as they take seconds that `--help` need not wait for.
    from bottleneck.pretrained.import_run import TOKENIZER, import_run
    from bottleneck.runs.reading import load_run
    from bottleneck.storage.workspace import claimed
    from bottleneck.terminal import count

    with claimed(flags.workdir):
        step = import_run(flags.model, flags.workdir, revision=flags.revision, step=flags.step)
    print(f"{flags.workdir}: step {step}, {count(load_run(flags.workdir).n_params)} parameters")
    if not (flags.workdir / TOKENIZER).is_file():
        print(f"{flags.model} has no {TOKENIZER}; put one there before text is to be read")
    return 0
