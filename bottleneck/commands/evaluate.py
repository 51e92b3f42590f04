"""Run tasks of the LM Evaluation Harness on checkpoints of a run.

Needs the [eval] extra. Prints the results and appends them to evaluation.jsonl in the run folder.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from bottleneck.commands.parsing import Parser, listed, option, whole
from bottleneck.errors import UserError


def main(argv: list[str]) -> int:
    parser = Parser("python -m bottleneck evaluate", description=__doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder")
    names = "tasks to run, such as lambada_openai,wikitext,sciq,arc_easy"
    option(parser, "--tasks", listed(str), names, required=True)
    option(parser, "--steps", listed(whole(0)), "steps to evaluate (default: the last)")
    option(parser, "--limit", whole(1), "only the first N examples of each task")
    option(parser, "--batch_size", whole(1, 2**16), "sequences in a batch", 16)
    include = "folder of your own tasks, in YAML; a task may name code, which is run"
    option(parser, "--include", Path, include)
    output = "file to append to (default: evaluation.jsonl in RUN)"
    option(parser, "--output", Path, output, metavar="FILE")
    flags = parser.parse_args(argv)
    if find_spec("lm_eval") is None:
        raise UserError(
            "evaluate needs the [eval] extra; in the repository: pip install -e '.[eval]'"
        )

    import rich.table

    from bottleneck.parallel import compile_cache
    from bottleneck.pretrained.evaluation import EVALUATION, append, evaluate
    from bottleneck.runs.reading import load
    from bottleneck.terminal import PlainConsole

    compile_cache.use()
    run = load(flags.run)
    steps, tasks = list(flags.steps or ()), list(flags.tasks)
    how = {"limit": flags.limit, "batch_size": flags.batch_size, "include": flags.include}
    rows = evaluate(run, steps, tasks, **how)
    append(flags.output or run.path / EVALUATION, rows)
    table = rich.table.Table("step", "task", "metric", "value", box=None, header_style="bold")
    for row in rows:
        for name, value in row.items():
            spread = row.get(f"{name}_stderr")
            if isinstance(value, float) and not name.endswith("_stderr"):
                shown = f"{value:.4f}" + ("" if spread is None else f" ± {spread:.4f}")
                table.add_row(str(row["step"]), row["task"], name, shown)
    PlainConsole().print(table)
    return 0
