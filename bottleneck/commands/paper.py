"""Write a page that walks through the paper's figures and tables, and judges runs beside them.

Works offline: it recomputes what the published values allow, and names the command for the rest.
With runs it writes their report as well, the paper's curves under those of the same width.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bottleneck.commands.parsing import Parser
from bottleneck.storage.folders import as_path


def main(argv: list[str]) -> int:
    """Returns the exit code; raises `UserError` where evaluations or runs cannot be read."""
    parser = Parser("python -m bottleneck paper", description=__doc__)
    parser.add_argument(
        "workdir", nargs="*", type=Path, help="a run folder, or a folder of them, to judge"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("paper"), metavar="DIR", help="default: paper"
    )
    parser.add_argument(
        "--evals",
        type=Path,
        metavar="PATH",
        help="published evaluations to judge: a copy of evals/ of EleutherAI/pythia, or a .json "
        "file that sums it up",
    )
    flags = parser.parse_args(argv)

    # Imported here, as they take seconds that `--help` need not wait for.
    from bottleneck.paper.evals import read_evals
    from bottleneck.paper.overlay import PaperOverlay
    from bottleneck.paper.page import write_paper
    from bottleneck.report.page import write_report
    from bottleneck.runs.reading import load_runs

    evals = read_evals(as_path(flags.evals)) if flags.evals else None
    runs, problems = load_runs(flags.workdir) if flags.workdir else ([], [])
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    output = flags.output.expanduser()
    print(f"page: {write_paper(output, evals, runs)}")
    if runs:
        print(f"report: {write_report(runs, output, overlay=PaperOverlay())}")
    return 0
