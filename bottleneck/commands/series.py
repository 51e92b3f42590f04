"""Measure every checkpoint of a model as training would have, into a run folder.

MODEL is a name on the Hugging Face hub with revisions stepN, or that model's folder in its cache.
It can also be a folder with subfolders stepN, or a run folder. Repeat the command to resume, or to
add new steps. Exits with 1 if a step cannot be read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bottleneck.commands.flags import parse_command
from bottleneck.commands.parsing import Parser, listed, option, switch, whole


def main(argv: list[str]) -> int:
    parser = Parser("python -m bottleneck series", description=__doc__, allow_abbrev=False)
    parser.add_argument("model", metavar="MODEL", help="such as EleutherAI/pythia-160m")
    option(parser, "--workdir", Path, "run folder to write", required=True)
    some = parser.add_mutually_exclusive_group()
    option(some, "--steps", listed(whole(0)), "steps to measure (default: all)")
    option(some, "--every", whole(1), "measure the multiples of N")
    switch(parser, "--audit_only", "only hash the weights of each step")
    config = None
    if "--audit_only" in argv:
        parser.add_argument("--config", help=argparse.SUPPRESS)  # not used here
        flags = parser.parse_args([a for a in argv if not a.startswith("--config.")])
    else:
        flags, config = parse_command(parser, argv, needs_data=False)
    workdir = flags.workdir.expanduser()

    from bottleneck.parallel import compile_cache
    from bottleneck.pretrained.series import audit_series, choose, measure_series
    from bottleneck.pretrained.series_audit import print_audit
    from bottleneck.pretrained.series_source import open_series
    from bottleneck.terminal import PlainConsole

    series = open_series(flags.model)
    steps = choose(series, list(flags.steps or ()), flags.every)
    if config is None:
        audit = audit_series(series, steps, workdir)
    else:
        compile_cache.use(config)
        audit = measure_series(config, series, steps, workdir)
    print_audit(audit, steps, PlainConsole())
    return 1 if audit.n_failed(steps) else 0
