"""What the flags of all verbs have in common: a mistake is one line, and a number has its bounds.

Imports nothing that takes time.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import NoReturn, TypeVar

from bottleneck.errors import UserError

Item = TypeVar("Item")

_LARGEST = 2**63 - 1  # that an array takes
_VALUE = "the value "  # by which `error` knows the lines of this module


class Parser(argparse.ArgumentParser):
    """Raises `UserError` for a flag that is wrong, where argparse prints its usage and exits."""

    def error(self, message: str) -> NoReturn:
        flag, is_value, what = message.removeprefix("argument ").partition(f": {_VALUE}")
        if is_value:
            raise UserError(f"{flag}={what}")
        raise UserError(f"{message}; {self.prog} --help says what there is")


def whole(low: int, high: int = _LARGEST) -> Callable[[str], int]:
    """For `type=`: a whole number in [low, high], which may have commas between its digits."""

    def parse(text: str) -> int:
        number = int(text.replace(",", ""))
        if not low <= number <= high:
            raise _refused(text, f"at least {low}" if number < low else f"at most {high:,}")
        return number

    parse.__name__ = "number"  # what argparse calls it
    return parse


def real(
    low: float, *, is_open: bool = False, may_be_infinite: bool = False
) -> Callable[[str], float]:
    """For `type=`: a number from low, or above it where `is_open`."""

    def parse(text: str) -> float:
        number = float(text)
        if not (number > low if is_open else number >= low):  # nor is NaN
            raise _refused(text, f"{'above' if is_open else 'at least'} {low:g}")
        if math.isinf(number) and not may_be_infinite:
            raise _refused(text, "finite")
        return number

    parse.__name__ = "number"
    return parse


def listed(kind: Callable[[str], Item]) -> Callable[[str], tuple[Item, ...]]:
    """For `type=`: items with commas between them."""

    def parse(text: str) -> tuple[Item, ...]:
        return tuple(kind(item) for item in text.split(","))

    parse.__name__ = f"list of {kind.__name__}s"
    return parse


def _refused(text: str, allowed: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"{_VALUE}{text:.40} is not allowed; it must be {allowed}")
