"""Write a page that walks through the paper's figures and tables, with what they give here.

Works offline: it computes anew what the published values allow, and names the command for the rest.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bottleneck.commands.parsing import Parser
from bottleneck.folders import as_path


def main(argv: list[str]) -> int:
    """Returns the exit code; raises `UserError` where evaluations or runs cannot be read."""
    parser = Parser("python -m bottleneck paper", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("paper"), metavar="DIR", help="default: paper"
    )
    parser.add_argument(
        "--evals",
        type=Path,
        metavar="PATH",
        help="published evaluations to judge: a copy of evals/ of EleutherAI/pythia, or a .json "
        "file that sums it up",
    )
    parser.add_argument(
        "--series",
        nargs="+",
        type=Path,
        default=[],
        metavar="RUN",
        help="run folders to judge, and to draw beside the paper's curves if they have a tenth "
        "of its steps",
    )
    flags = parser.parse_args(argv)

    # Imported here, as they take seconds that `--help` need not wait for.
    from bottleneck.analysis.paper import write_paper
    from bottleneck.analysis.published_evals import read_evals
    from bottleneck.analysis.runs import load_runs

    evals = read_evals(as_path(flags.evals)) if flags.evals else None
    runs, problems = load_runs(flags.series) if flags.series else ([], [])
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    print(f"page: {write_paper(flags.out.expanduser(), evals, runs)}")
    return 0
