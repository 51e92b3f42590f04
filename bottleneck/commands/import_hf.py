"""Make a run folder of a released model (GPT-NeoX, GPT-2 or Llama, in safetensors).

MODEL is a folder or a name on the Hugging Face hub. Every verb reads the run folder like that of a
run trained here. Import several steps of one training into the same folder.
"""

from __future__ import annotations

from pathlib import Path

from bottleneck.commands.parsing import Parser, option, whole


def main(argv: list[str]) -> int:
    parser = Parser("python -m bottleneck import_hf", description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="such as EleutherAI/pythia-160m")
    option(parser, "--workdir", Path, "run folder to write", required=True)
    option(parser, "--revision", str, "revision on the hub, such as step1000")
    number = "step to import it as (default: N of a revision or folder named stepN, otherwise 0)"
    option(parser, "--step", whole(0), number)
    flags = parser.parse_args(argv)

    from bottleneck.pretrained.imported_run import TOKENIZER, import_run
    from bottleneck.runs.reading import load
    from bottleneck.storage.workspace import claimed
    from bottleneck.terminal import count

    with claimed(flags.workdir):
        step = import_run(flags.model, flags.workdir, revision=flags.revision, step=flags.step)
    print(f"{flags.workdir}: step {step}, {count(load(flags.workdir).n_params)} parameters")
    if not (flags.workdir / TOKENIZER).is_file():
        print(f"{flags.model} has no {TOKENIZER}; add one to the folder before a verb reads text")
    return 0
