"""The exceptions that end the program without a traceback, and what their messages suggest."""

from __future__ import annotations

import difflib


def spelled_out(text: str) -> str:
    """The text with line breaks and what a terminal would obey spelled out.

    A file may have any name.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class UserError(Exception):
    """A mistake the user can mend: one line with what is wrong, where, and what would be right.

    `python -m bottleneck` prints the message to standard error and exits with `exit_code`.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(spelled_out(message))


class Diverged(UserError):
    """A training whose loss is no longer finite: it would be again, started again as it is."""

    exit_code = 3


def suggestion(name: str, known: list[str]) -> str:
    """What to say after a name that is not among those known."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known))}"
