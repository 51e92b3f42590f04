"""`python -m bottleneck VERB …`: runs a verb, and reports a user's mistake in one line."""

import gc
import sys
import threading
from typing import NoReturn

from bottleneck import __version__, signals

# Everything else is imported after `run` has installed the signal handlers.

_NOT_VERBS = {"flags", "parsing"}


def verbs() -> list[str]:
    """Returns the names of all verbs: the modules of `commands`."""
    import pkgutil

    from bottleneck import commands

    names = {module.name for module in pkgutil.iter_modules(commands.__path__)}
    return sorted(names - _NOT_VERBS)


def _print_usage() -> None:
    """Lists the verbs with the first lines of their docstrings; imports none of them."""
    import ast
    from pathlib import Path

    from bottleneck import commands

    print(f"bottleneck {__version__}: small language models whose head has a chosen rank.\n")
    print("usage: python -m bottleneck VERB [flags]\n")
    for verb in verbs():
        source = Path(commands.__path__[0], f"{verb}.py").read_text(encoding="utf-8")
        summary = (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]
        print(f"  {verb:<12} {summary}")
    print("\npython -m bottleneck VERB --help describes the flags of a verb.")


def main(argv: list[str] | None = None) -> int:
    """Runs a verb; returns its exit code, 2 after a user's mistake, 3 after a divergence."""
    import importlib
    import warnings

    from bottleneck.errors import UserError, suggestion

    argv = sys.argv[1:] if argv is None else argv
    # pandas mistakes us for an array library of the same name, and warns that it is too old.
    warnings.filterwarnings("ignore", message=".*version .* of 'bottleneck'.*")
    if not argv or argv[0] in ("-h", "--help", "help"):
        _print_usage()
        return 0 if argv else 2
    verb, rest = argv[0], argv[1:]
    if verb == "--version":
        print(__version__)
        return 0
    try:
        if verb not in verbs():
            raise UserError(f"{verb} is not a verb; {suggestion(verb, verbs())}")
        return importlib.import_module(f"bottleneck.commands.{verb}").main(rest)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def run() -> NoReturn:
    """Runs a verb and exits; after an error, without waiting for threads of libraries.

    The exit code is 130 after Ctrl-C, 143 after SIGTERM, and 141 if the reader of stdout is gone.
    """
    signals.end_quietly()
    # Imports and traces make a million objects that stay. Looking for garbage among them, as often
    # as Python does by default, takes a tenth of a start.
    gc.set_threshold(100_000, 50, 100)
    try:
        code = main()
        threads = [t for t in threading.enumerate() if t is not threading.main_thread()]
        if code and not all(thread.daemon for thread in threads):
            # They would print tracebacks, or never end. Their unfinished files have no name yet.
            signals.leave(code)
    except SystemExit as stop:  # of a parser, or of training that saved and stopped
        code = int(stop.code or 0)
    except BrokenPipeError:
        if not signals.reader_is_gone():
            raise
        code = signals.READER_GONE
    signals.set_exit_code(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
