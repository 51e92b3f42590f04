"""Windows of n tokens as sortable keys, and sorted records of their counts.

A window is a context of n − 1 tokens and the token after it. Its key has 128 bits, two uint64. The
next token has the lowest bits, so sorting puts the windows of one context together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bottleneck.errors import UserError

RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("count", "<u4")])  # a key and its count
_WORD = 64  # bits
# Odd, with irregular bits, for multiplicative hashing.
_MIX_HIGH, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)


class Tokens(Protocol):
    """A one-dimensional array of ids, such as a memory map or the sequence of a token cache."""

    def __len__(self) -> int: ...

    def __getitem__(self, span: slice, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Windows:
    """The windows of a text to count."""

    n: int  # tokens of a window
    vocab_size: int  # V; ids are below it
    end_of_text: int | None = None  # may only end a window
    sample: int | None = None  # windows to draw without replacement; None: all
    seed: int = 0  # of the draw

    def __post_init__(self) -> None:
        if not 2 <= self.n <= 7:
            raise UserError(f"n={self.n} is not allowed; n-grams have 2 to 7 tokens")
        if self.sample is not None and self.sample < 1:
            raise UserError(f"a sample of {self.sample} windows is not allowed; take at least 1")
        if self.n * self.bits > 2 * _WORD:
            most = 2 ** (2 * _WORD // self.n)
            raise UserError(
                f"{self.n}-grams of {self.vocab_size:,} ids do not fit the counter's "
                f"{2 * _WORD}-bit keys; at most {most:,} ids do, or take a smaller n"
            )

    @property
    def bits(self) -> int:
        """Bits of an id."""
        return max(int(self.vocab_size - 1).bit_length(), 1)


def keys(tokens: Tokens, start: int, stop: int, windows: Windows) -> tuple[np.ndarray, np.ndarray]:
    """Returns the keys of windows start … stop − 1: their high and low words, uint64."""
    piece = np.asarray(tokens[start : stop + windows.n - 1])
    if int(piece.max()) >= windows.vocab_size or int(piece.min()) < 0:
        wrong = int(piece.max() if piece.max() >= windows.vocab_size else piece.min())
        raise UserError(f"token id {wrong} is not one of a vocabulary of {windows.vocab_size:,}")
    bits = np.uint64(windows.bits)
    high, low = (np.zeros(stop - start, np.uint64) for _ in range(2))
    keep = np.ones(stop - start, bool)
    for place in range(windows.n):
        token = piece[place : place + stop - start]
        high <<= bits
        high |= low >> (np.uint64(_WORD) - bits)
        low <<= bits
        low |= token.astype(np.uint64)
        if windows.end_of_text is not None and place < windows.n - 1:
            keep &= token != windows.end_of_text
    return (high, low) if keep.all() else (high[keep], low[keep])


def sorted_by_part(
    high: np.ndarray, low: np.ndarray, bits: int, parts: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns records of the distinct keys, sorted by part and key, and the end of each part."""
    ones = np.ones(len(low), np.uint32)
    if parts == 1:
        records = _added_up(high, low, ones, np.lexsort((low, high)))
        return records, np.array([len(records)])
    shift = np.uint64(_WORD - parts.bit_length() + 1)
    part = _part(high, low, bits, shift)
    records = _added_up(high, low, ones, np.lexsort((low, high, part)))
    of_record = _part(records["high"], records["low"], bits, shift)
    return records, np.searchsorted(of_record, np.arange(parts, dtype=np.uint64), side="right")


def _part(high: np.ndarray, low: np.ndarray, bits: int, shift: np.uint64) -> np.ndarray:
    """Returns the part of each key's context, uint64, by a hash that wraps around."""
    context = (high * _MIX_HIGH) ^ (low >> np.uint64(bits))
    context ^= context >> np.uint64(32)
    return np.asarray((context * _MIX) >> shift)


def _added_up(
    high: np.ndarray, low: np.ndarray, counts: np.ndarray, order: np.ndarray
) -> np.ndarray:
    """Returns one record per distinct key, in an order that has equal keys together."""
    high, low = high[order], low[order]
    first = np.flatnonzero(differs(high) | differs(low))
    records = np.empty(len(first), RECORD)
    records["high"], records["low"] = high[first], low[first]
    if len(first):
        records["count"] = np.add.reduceat(counts[order], first, dtype=np.uint32)
    return records


def differs(values: np.ndarray) -> np.ndarray:
    """Returns True at each value that differs from the one before it, and at the first."""
    differs = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=differs[1:])
    return differs


def merge_records(stored: np.ndarray, at_once: int) -> np.ndarray:
    """Returns stored records, sorted and with equal keys added up; sorts `at_once` at a time."""
    merged = np.zeros(0, RECORD)
    start = 0
    while start < len(stored):
        stop = start + max(at_once - len(merged), at_once // 4, 1)
        records = np.concatenate([merged, stored[start:stop]])
        order = np.lexsort((records["low"], records["high"]))
        merged = _added_up(records["high"], records["low"], records["count"], order)
        start = stop
    return merged


def largest_id(tokens: Tokens, at_once: int = 2**22) -> int:
    """Returns the largest token; raises `UserError` if there are no tokens."""
    if not len(tokens):
        raise UserError("the corpus has no tokens")
    starts = range(0, len(tokens), at_once)
    return max(int(tokens[start : start + at_once].max()) for start in starts)
