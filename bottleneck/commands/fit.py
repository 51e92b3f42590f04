"""Fit a scaling law to finished runs, or to a table of points, and write law.json and a figure.

Points are run folders, or folders of them; or --table, a .csv, .tsv, .json or .jsonl file with
columns n_params, n_tokens and loss, and rank, width and flops where they are known. Where heads
have not full rank, four laws are compared: rank without effect, as a term of its own, as an
effective width, as effective data.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from bottleneck.commands.parsing import Parser, real, whole
from bottleneck.errors import UserError
from bottleneck.runs.folder import write_text


def main(argv: list[str]) -> int:
    """Returns the exit code; raises `UserError` for points or flags that are not right."""
    parser = Parser("python -m bottleneck fit", description=__doc__)
    parser.add_argument("workdir", nargs="*", type=Path, help="a run folder, or a folder of them")
    parser.add_argument("--table", type=Path, metavar="FILE", help="a table of points instead")
    parser.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="NAME=COLUMN",
        help="what the table calls a column, such as n_params='Model Size'",
    )
    parser.add_argument(
        "--fixed", default="", metavar="NAME=VALUE,…", help="constants that are known: B=410.7"
    )
    parser.add_argument(
        "--form",
        choices=("chinchilla", "additive", "effective_width", "effective_data"),
        help="the one law to fit (default: compare them where ranks differ)",
    )
    parser.add_argument(
        "--fit_from",
        type=real(0),
        default=0.0,
        metavar="N",
        help="fit to models of at least so many parameters, and hold the smaller against the law",
    )
    parser.add_argument(
        "--bootstrap",
        type=whole(0, 100_000),
        default=1000,
        metavar="N",
        help="resamples, 0 for none (1000)",
    )
    parser.add_argument(
        "--parameters", choices=("total", "non_embedding"), default="total", help="N of runs"
    )
    parser.add_argument(
        "--flops",
        choices=("total", "with_head", "without_head"),
        default="total",
        help="whose 6 FLOPs a token are the compute of runs: of all parameters, of layers and "
        "head, of layers alone (default: total)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="default: law/ beside the points"
    )
    flags = parser.parse_args(argv)
    if bool(flags.workdir) == (flags.table is not None):
        raise UserError("give run folders, or --table=FILE, and not both")
    if flags.columns and flags.table is None:
        raise UserError("--columns names the columns of a --table, and there is none")
    fixed = _assigned(flags.fixed.split(",") if flags.fixed else [], "--fixed", "NAME=VALUE")
    columns = _assigned(flags.columns, "--columns", "NAME=COLUMN")

    # Imported here, as they take seconds that a mistake need not wait for.

    from bottleneck.drawing.style import save
    from bottleneck.laws import points as law_points
    from bottleneck.laws.figure import law_figure
    from bottleneck.laws.forms import FORMS
    from bottleneck.laws.report import as_json, show
    from bottleneck.laws.study import study
    from bottleneck.parallel import compile_cache
    from bottleneck.runs.reading import load_runs
    from bottleneck.terminal import PlainConsole

    compile_cache.use()
    if flags.table is not None:
        measured = law_points.from_table(flags.table, columns)
        beside = flags.table.expanduser().resolve().parent
    else:
        runs, problems = load_runs(flags.workdir)
        for problem in problems:
            print(f"left out: {problem}", file=sys.stderr)
        measured = law_points.from_runs(runs, flags.parameters, flags.flops)
        beside = Path(os.path.commonpath([path.expanduser().resolve() for path in flags.workdir]))
    numbers = {name: _number(name, value) for name, value in fixed.items()}
    form = FORMS[flags.form] if flags.form else None
    result = study(measured, numbers, form, flags.bootstrap, flags.fit_from)
    folder = flags.output or beside / "law"
    folder.mkdir(parents=True, exist_ok=True)
    said = json.dumps(as_json(result), indent=2, ensure_ascii=False)
    write_text(folder / "law.json", said + "\n")
    picture = save(law_figure(result), folder / "law.png")
    show(result, PlainConsole(highlight=False))
    print(f"\nlaw: {folder / 'law.json'}\nfigure: {picture}")
    return 0


def _assigned(items: list[str], flag: str, form: str) -> dict[str, str]:
    pairs = [item.strip().partition("=") for item in items]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise UserError(f"{flag} takes {form}, and {name + equals + value!r} is not that")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise UserError(f"--fixed {name}={value} is not a number") from error
