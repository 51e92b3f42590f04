"""Write a page that walks through the paper's figures, and tests runs beside them.

Works offline: recomputes all that the published values allow, and prints commands for the rest.
With runs, also writes their report, with the paper's curves of the same width underneath.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bottleneck.commands.parsing import Parser, option
from bottleneck.storage.folders import as_path


def main(argv: list[str]) -> int:
    parser = Parser("python -m bottleneck paper", description=__doc__)
    folders = "a run folder, or a folder of them"
    parser.add_argument("runs", metavar="RUN", nargs="*", type=Path, help=folders)
    option(parser, "--output", Path, "folder to write", Path("paper"))
    published = "published evaluations: a copy of evals/ of EleutherAI/pythia, or its .json summary"
    option(parser, "--evals", Path, published, metavar="PATH")
    flags = parser.parse_args(argv)

    from bottleneck.paper.evals import read_evals
    from bottleneck.paper.overlay import PaperOverlay
    from bottleneck.paper.page import write_paper
    from bottleneck.report.page import write_report
    from bottleneck.runs.reading import load_all

    evals = read_evals(as_path(flags.evals)) if flags.evals else None
    runs, problems = load_all(flags.runs) if flags.runs else ([], [])
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    output = flags.output.expanduser()
    print(f"page: {write_paper(output, evals, runs)}")
    if runs:
        print(f"report: {write_report(runs, output, overlay=PaperOverlay())}")
    return 0
