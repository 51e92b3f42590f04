"""Train a model, with probes and checkpoints; the same command continues a stopped run.

Nothing that takes seconds to import is imported before the config has been checked.
"""

from __future__ import annotations

import argparse

from bottleneck.commands.flags import parse_command
from bottleneck.errors import UserError


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "python -m bottleneck train", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--workdir", required=True, help="the run folder; made if it is not there")
    many = parser.add_argument_group(
        "many processes",
        "found by themselves on TPU pods and under SLURM or Open MPI; elsewhere say all three",
    )
    many.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    many.add_argument("--processes", type=int, metavar="N", help="how many there are")
    many.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")
    arguments, config = parse_command(parser, argv)
    world = (arguments.coordinator, arguments.processes, arguments.process)
    if any(part is not None for part in world) and None in world:
        raise UserError("--coordinator, --processes and --process belong together")

    from bottleneck.parallel import distributed

    distributed.start(None if None in world else distributed.Processes(*world))

    from bottleneck.training.loop import train

    train(config, arguments.workdir)
    return 0
