"""Train a model, with probes and checkpoints; repeat the command to resume a run.

Imports nothing slow before the config is checked.
"""

from __future__ import annotations

from bottleneck.commands.flags import add_world, joined_world, parse_command
from bottleneck.commands.parsing import Parser
from bottleneck.parallel.host_memory import keep_freed_memory


def main(argv: list[str]) -> int:
    parser = Parser("python -m bottleneck train", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--workdir", required=True, metavar="DIR", help="run folder to write or resume"
    )
    add_world(parser)
    arguments, config = parse_command(parser, argv)
    keep_freed_memory()
    with joined_world(arguments):
        from bottleneck.parallel import compile_cache
        from bottleneck.training.loop import train

        compile_cache.use(config)
        train(config, arguments.workdir)
    return 0
