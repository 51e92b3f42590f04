"""Train a model, with probes and checkpoints; the same command continues a stopped run.

Nothing that takes seconds to import is imported before the config has been checked.
"""

from __future__ import annotations

from bottleneck.commands.flags import add_world, joined_world, parse_command
from bottleneck.commands.parsing import Parser
from bottleneck.parallel.host_memory import keep_freed_memory


def main(argv: list[str]) -> int:
    parser = Parser("python -m bottleneck train", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="the run folder; made if it is not there")
    add_world(parser)
    arguments, config = parse_command(parser, argv)
    keep_freed_memory()
    with joined_world(arguments):
        from bottleneck.parallel import compile_cache
        from bottleneck.training.loop import train

        compile_cache.use(config)
        train(config, arguments.workdir)
    return 0
