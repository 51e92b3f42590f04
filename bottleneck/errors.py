"""Exceptions that end the program without a traceback, and text for their messages."""

import difflib


def spelled_out(text: str) -> str:
    """Returns the text with line breaks and control characters escaped: names may hold any."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class UserError(Exception):
    """A user's mistake: one line with what is wrong, where, and what would be right.

    `python -m bottleneck` prints it to standard error and exits with `exit_code`.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(spelled_out(message))


class Diverged(UserError):
    """A training whose loss is not finite; repeating the command would diverge again."""

    exit_code = 3


def suggestion(name: str, known: list[str]) -> str:
    """Returns advice on an unknown name: the closest known one, or all."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known))}"
