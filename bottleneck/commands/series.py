"""Measure every checkpoint of one model, as training would have: a series becomes a run folder.

SOURCE is a folder with a subfolder for each step (step1000, …), the folder models--ORG--NAME of a
cache of the hub, a name on the hub with revisions stepN, or a run folder. The same command goes on
where it was stopped, and takes up steps that are new. Exit code 1 says that a step cannot be read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bottleneck.commands.flags import parse_command
from bottleneck.commands.parsing import Parser, listed, whole


def main(argv: list[str]) -> int:
    """Returns the exit code; raises `UserError` where source, folder or data do not fit."""
    parser = Parser("python -m bottleneck series", description=__doc__, allow_abbrev=False)
    parser.add_argument("source", metavar="SOURCE", help="such as EleutherAI/pythia-160m")
    parser.add_argument("--workdir", required=True, type=Path, help="the run folder to make")
    some = parser.add_mutually_exclusive_group()
    some.add_argument(
        "--steps", type=listed(whole(0)), metavar="N,N,…", help="these steps (default: all)"
    )
    some.add_argument(
        "--every", type=whole(1), metavar="N", help="the steps that are multiples of N"
    )
    parser.add_argument(
        "--audit_only", action="store_true", help="hash the weights of each step, measure nothing"
    )
    config = None
    if "--audit_only" in argv:
        parser.add_argument("--config", help=argparse.SUPPRESS)  # measuring alone needs one
        flags = parser.parse_args([a for a in argv if not a.startswith("--config.")])
    else:
        flags, config = parse_command(parser, argv, needs_data=False)
    workdir = flags.workdir.expanduser()

    # Imported here, as they take seconds that `--help` need not wait for.

    from bottleneck.parallel import compile_cache
    from bottleneck.pretrained.series import audit_series, choose, measure_series
    from bottleneck.pretrained.series_audit import print_audit
    from bottleneck.pretrained.series_source import open_series
    from bottleneck.terminal import PlainConsole

    series = open_series(flags.source)
    steps = choose(series, list(flags.steps or ()), flags.every)
    if config is None:
        audit = audit_series(series, steps, workdir)
    else:
        compile_cache.use(config)
        audit = measure_series(config, series, steps, workdir)
    print_audit(audit, steps, PlainConsole())
    return 1 if audit.n_failed(steps) else 0
