"""Fit a scaling law to finished runs, or to a table of points, and write law.json and a figure.

Give run folders, or folders of them; or --table, a .csv, .tsv, .json or .jsonl file with columns
n_params, n_tokens and loss, and rank, width and flops if they are known. If some heads are of lower
rank, four laws are compared: rank without effect, as a term of its own, as an effective width, as
effective data.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from bottleneck.commands.parsing import Parser, option, real, whole
from bottleneck.errors import UserError
from bottleneck.runs.folder import write_text


def main(argv: list[str]) -> int:
    parser = Parser("python -m bottleneck fit", description=__doc__)
    folders = "a run folder, or a folder of them"
    parser.add_argument("runs", metavar="RUN", nargs="*", type=Path, help=folders)
    option(parser, "--table", Path, "a table of points instead", metavar="FILE")
    other = "the table's own name of a column, such as n_params='Model Size'"
    option(parser, "--columns", str, other, nargs="+", metavar="NAME=COLUMN")
    option(parser, "--fixed", str, "known constants: B=410.7", metavar="NAME=VALUE,…")
    forms = ("chinchilla", "additive", "effective_width", "effective_data")
    form = "the one law to fit (default: compare all if ranks differ)"
    option(parser, "--form", str, form, choices=forms)
    least = "fit to models of at least N parameters, and compare the smaller ones with the law"
    option(parser, "--fit_from", real(0), least, 0.0)
    option(parser, "--bootstrap", whole(0, 100_000), "resamples, 0 for none", 1000)
    counted = "parameters that count as N of runs"
    option(parser, "--parameters", str, counted, "total", choices=("total", "non_embedding"))
    cost = "parameters that count for the compute of runs, 6 FLOPs a token each: all, those of "
    cost += "layers and head, those of layers alone"
    conventions = ("total", "with_head", "without_head")
    option(parser, "--flops", str, cost, "total", choices=conventions)
    option(parser, "--output", Path, "folder to write (default: law/ beside the points)")
    flags = parser.parse_args(argv)
    if bool(flags.runs) == (flags.table is not None):
        raise UserError("give run folders, or --table=FILE, but not both")
    if flags.columns and flags.table is None:
        raise UserError("--columns names the columns of a --table; give one")
    given = _assigned(flags.fixed.split(",") if flags.fixed else [], "--fixed", "NAME=VALUE")
    fixed = {name: _number(name, value) for name, value in given.items()}
    columns = _assigned(flags.columns or [], "--columns", "NAME=COLUMN")

    # Imported here because they take seconds, and a mistake in the flags need not wait for them.
    from bottleneck.drawing.style import save
    from bottleneck.laws.figure import law_figure
    from bottleneck.laws.points import from_runs, from_table
    from bottleneck.laws.report import as_json, show
    from bottleneck.laws.study import study_points
    from bottleneck.parallel import compile_cache
    from bottleneck.runs.reading import load_all
    from bottleneck.terminal import PlainConsole

    compile_cache.use()
    if flags.table is not None:
        points, best = from_table(flags.table, columns), None
        beside = flags.table.expanduser().resolve().parent
    else:
        runs, problems = load_all(flags.runs)
        for problem in problems:
            print(f"left out: {problem}", file=sys.stderr)
        points, best = (
            from_runs(runs, flags.parameters, flags.flops, at_least_loss=at) for at in (False, True)
        )
        beside = Path(os.path.commonpath([path.expanduser().resolve() for path in flags.runs]))
    result = study_points(points, flags.form, fixed, flags.bootstrap, flags.fit_from, best)
    folder = flags.output or beside / "law"
    folder.mkdir(parents=True, exist_ok=True)
    record = json.dumps(as_json(result), indent=2, ensure_ascii=False)
    write_text(folder / "law.json", record + "\n")
    picture = save(law_figure(result), folder / "law.png")
    show(result, PlainConsole(highlight=False))
    print(f"\nlaw: {folder / 'law.json'}\nfigure: {picture}")
    return 0


def _assigned(items: list[str], flag: str, form: str) -> dict[str, str]:
    pairs = [item.strip().partition("=") for item in items]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise UserError(f"{flag} takes {form}, not {name + equals + value!r}")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise UserError(f"--fixed {name}={value} is not a number") from error
