"""Tokenize the corpus of a config, or check its tokens; `train` does it when needed."""

from __future__ import annotations

from bottleneck.commands.flags import parse_command
from bottleneck.commands.parsing import Parser, switch


def main(argv: list[str]) -> int:
    parser = Parser("python -m bottleneck prepare", description=__doc__)
    switch(parser, "--rebuild", "tokenize again")
    switch(parser, "--verify", "read all tokens and compare them with the manifest")
    arguments, config = parse_command(parser, argv)

    from bottleneck.data.tokens import prepare

    cache = prepare(config.data, rebuild=arguments.rebuild)
    if arguments.verify:
        cache.verify()
        print(f"{cache.path} matches its manifest")
    return 0
