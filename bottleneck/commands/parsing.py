"""Flags that all verbs share: a mistake is one line, numbers have bounds, no import is slow."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from bottleneck.errors import UserError

Item = TypeVar("Item")

# Name of a `type=` → what a flag's help calls its value.
_METAVARS = {
    "number": "N",
    "list of numbers": "N,…",
    "str": "NAME",
    "list of strs": "NAME,…",
    "Path": "DIR",
}
_FORMATS = {int: ",", float: "g"}  # of a default
_LARGEST = 2**63 - 1  # int64
_VALUE = "the value "  # marks the messages of this module for `Parser.error`


class Parser(argparse.ArgumentParser):
    """Raises `UserError` for a wrong flag; argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        flag, is_value, what = message.removeprefix("argument ").partition(f": {_VALUE}")
        if is_value:
            raise UserError(f"{flag}={what}")
        raise UserError(f"{message}; see {self.prog} --help")


def option(
    parser: argparse._ActionsContainer,
    flag: str,
    kind: Callable[[str], Any],
    help: str,
    default: Any = None,
    **more: Any,
) -> None:
    """Adds a flag that takes a value, to a parser or a group; its help ends with the default.

    `more` is for argparse; the help shows the `choices` if it has any.
    """
    if default is not None:
        items = default if isinstance(default, tuple) else (default,)
        shown = (format(item, _FORMATS.get(type(item), "")) for item in items)
        help += f" (default: {','.join(shown)})"
    if "choices" not in more:
        more = {"metavar": _METAVARS[kind.__name__]} | more
    parser.add_argument(flag, type=kind, help=help, default=default, **more)


def switch(parser: argparse._ActionsContainer, flag: str, help: str) -> None:
    """Adds a flag that takes no value."""
    parser.add_argument(flag, action="store_true", help=help)


def whole(low: int, high: int = _LARGEST) -> Callable[[str], int]:
    """Returns a `type=` for whole numbers in [low, high]; 1,000,000 is one of them."""

    def parse(text: str) -> int:
        number = int(text.replace(",", ""))
        if not low <= number <= high:
            raise _refused(text, f"at least {low}" if number < low else f"at most {high:,}")
        return number

    parse.__name__ = "number"  # argparse shows it
    return parse


def real(
    low: float, *, is_open: bool = False, may_be_infinite: bool = False
) -> Callable[[str], float]:
    """Returns a `type=` for numbers of at least low, or above low if `is_open`."""

    def parse(text: str) -> float:
        number = float(text)
        if not (number > low if is_open else number >= low):  # true of NaN
            raise _refused(text, f"{'above' if is_open else 'at least'} {low:g}")
        if math.isinf(number) and not may_be_infinite:
            raise _refused(text, "finite")
        return number

    parse.__name__ = "number"
    return parse


def listed(kind: Callable[[str], Item]) -> Callable[[str], tuple[Item, ...]]:
    """Returns a `type=` for items separated by commas."""

    def parse(text: str) -> tuple[Item, ...]:
        return tuple(kind(item) for item in text.split(","))

    parse.__name__ = f"list of {kind.__name__}s"
    return parse


def _refused(text: str, allowed: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"{_VALUE}{text:.40} is not allowed; it must be {allowed}")
