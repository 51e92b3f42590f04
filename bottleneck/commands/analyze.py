"""Write a report, with figures and a table, about one run or several.

RUN is a run folder or a folder of them; a run may still be training.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bottleneck.commands.parsing import Parser, option
from bottleneck.errors import UserError
from bottleneck.storage.folders import is_remote


def main(argv: list[str]) -> int:
    parser = Parser("python -m bottleneck analyze", description=__doc__)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run folder, or a folder of them")
    where = "folder to write (default: report/ in the folder that the runs share)"
    option(parser, "--output", Path, where)
    flags = parser.parse_args(argv)

    from bottleneck.report.page import write_report
    from bottleneck.report.summary import print_summary, summary_table
    from bottleneck.runs.reading import load_all
    from bottleneck.storage.workspace import claimed

    runs, problems = load_all(flags.runs)
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    output = flags.output or _default_output(flags.runs)
    with claimed(output, "--output"):
        page = write_report(runs, output)
    print_summary(summary_table(runs))
    print(f"\nreport: {page}")
    return 0


def _default_output(paths: list[str]) -> Path:
    if any(map(is_remote, paths)):
        raise UserError("the report of a remote run is written to this machine: give --output=DIR")
    common = Path(os.path.commonpath([Path(path).expanduser().resolve() for path in paths]))
    if common == Path(common.anchor):
        raise UserError("the runs have no folder in common: give --output=DIR")
    return common / "report"
