"""Tokenize the corpus of a config, or check what is there; training does it by itself."""

from __future__ import annotations

from bottleneck.commands.flags import parse_command
from bottleneck.commands.parsing import Parser


def main(argv: list[str]) -> int:
    """Returns the exit code; raises `UserError` where the corpus or its tokens are not right."""
    parser = Parser("python -m bottleneck prepare", description=__doc__.splitlines()[0])
    parser.add_argument("--rebuild", action="store_true", help="make the tokens anew")
    parser.add_argument(
        "--verify", action="store_true", help="read all tokens and compare them with their manifest"
    )
    arguments, config = parse_command(parser, argv)

    from bottleneck.data.tokens import prepare

    cache = prepare(config.data, rebuild=arguments.rebuild)
    if arguments.verify:
        cache.verify()
        print(f"{cache.path} is as it was made")
    return 0
