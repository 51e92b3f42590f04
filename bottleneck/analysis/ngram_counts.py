"""How often each token follows each context of a text, counted as a stream in bounded memory.

A window is n tokens: a context of n − 1 and the token after it. Windows are sorted and added up a
run at a time. Where they are more than one run, each run is split on disk by a hash of the context,
so that the parts can be merged one by one; both passes go on where a killed process stopped.

V: ids of the vocabulary; C: distinct contexts; a pair is a context and one of its next tokens.
"""

from __future__ import annotations

import dataclasses
import shutil
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bottleneck import sealed
from bottleneck.analysis.bars import progress
from bottleneck.archives import check
from bottleneck.errors import UserError

STATE = "state.json"
TABLE: dict[str, np.dtype] = {
    "starts": np.dtype("<i8"),
    "tokens": np.dtype("<u4"),
    "counts": np.dtype("<u4"),
}
_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("count", "<u4")])
_ANEW = "delete the folder, and they are counted again"
_WINDOW_BYTES = 120  # of memory for each window of a run: keys, copies, the order of a sort
_WORD = 64  # bits
_MOST_PARTS = 1024  # files of one pass; their pieces stay long enough for a disk
# Odd numbers without a pattern in their bits, for hashing by multiplication.
_MIX_HIGH, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)


class Tokens(Protocol):
    """A long one-dimensional array of ids, such as a memory map or a token cache's sequence."""

    def __len__(self) -> int: ...

    def __getitem__(self, span: slice, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Windows:
    """Which windows of a text are counted."""

    n: int  # tokens in each
    vocab_size: int  # V: every id is below it
    end_of_text: int | None = None  # windows that go on after this token are left out
    sample: int | None = None  # how many are drawn, without replacement; None: all
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
        """Bits that hold any id."""
        return max(int(self.vocab_size - 1).bit_length(), 1)


@dataclass(frozen=True)
class Plan:
    """What counting will take, known before it starts."""

    windows: int  # at most
    run: int  # windows that are sorted at a time
    parts: int  # that runs are split into, a power of two; 1: nothing is split
    memory: int  # bytes at most, beside the libraries
    disk: int  # bytes at most, of which the table stays

    @property
    def sentence(self) -> str:
        how = "in one run" if self.parts == 1 else f"in {-(-self.windows // self.run):,} runs"
        parts = f", merged in {self.parts:,} parts" if self.parts > 1 else ""
        return (
            f"{self.windows:,} windows {how} of at most {self.run:,}{parts}: at most "
            f"{self.memory / 1e9:.2f} GB of memory and {self.disk / 1e9:.2f} GB of disk"
        )


def plan(n_tokens: int, windows: Windows, memory: float) -> Plan:
    """How the windows of n_tokens will be counted within a number of bytes of memory.

    Raises `UserError` where there is no window, or the memory is too small for any run.
    """
    n_windows = n_tokens - windows.n + 1
    if n_windows < 1:
        raise UserError(
            f"the corpus has {n_tokens} tokens; at least {windows.n} are needed for one "
            f"{windows.n}-gram"
        )
    # A sample is held beside the run that it is drawn from, with its random numbers.
    room = memory - _WINDOW_BYTES * min(windows.sample or 0, n_windows)
    run = min(int(room // _WINDOW_BYTES), n_windows)
    if run < min(n_windows, 1000):
        raise UserError(f"{memory / 1e9:g} GB of memory is too little to count windows in")
    parts = 1
    if run < n_windows and windows.sample is None:
        # Twice as many as would do if the hash filled them evenly.
        while parts * run < 2 * n_windows and parts < _MOST_PARTS:
            parts *= 2
    table = sum(dtype.itemsize for dtype in TABLE.values())
    kept = min(windows.sample or n_windows, n_windows)
    on_disk = (table + (_RECORD.itemsize if parts > 1 else 0)) * kept
    in_memory = _WINDOW_BYTES * (run + min(windows.sample or 0, n_windows))
    return Plan(n_windows, run, parts, in_memory, on_disk)


@dataclass(frozen=True)
class Table:
    """The counts by context, memory-mapped; contexts are in no meaningful order."""

    starts: np.ndarray  # int64 [C]: where the pairs of each context begin
    tokens: np.ndarray  # uint32 [pairs]
    counts: np.ndarray  # uint32 [pairs], at least 1
    windows: Windows
    n_windows: int  # how many were counted: the sum of the counts

    @property
    def n_contexts(self) -> int:
        return len(self.starts)

    def blocks(self, pairs: int) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        """Contexts in pieces of about so many pairs: (index of the first one, starts, tokens,
        counts), the starts counted within the piece.
        """
        first = 0
        while first < self.n_contexts:
            begin = int(self.starts[first])
            stop = int(np.searchsorted(self.starts, begin + pairs))
            stop = min(max(stop, first + 1), self.n_contexts)
            end = int(self.starts[stop]) if stop < self.n_contexts else len(self.tokens)
            starts = np.asarray(self.starts[first:stop]) - begin
            yield first, starts, self.tokens[begin:end], self.counts[begin:end]
            first = stop


def count(
    tokens: Tokens, windows: Windows, folder: Path, *, memory: float = 2e9, identity: str = ""
) -> Table:
    """The table of all windows, kept in a folder; one begun there by a killed process is finished.

    Args:
        memory: bytes that sorting may take, beside the libraries.
        identity: of the tokens; a folder with counts of others is refused.
    Raises:
        UserError: where there is no window, an id is not below V, the folder is another's, or what
            is in it is damaged: a finished table is read through once, in about a second for each
            gigabyte.
    """
    layout = plan(len(tokens), windows, memory)
    made_of = dataclasses.asdict(windows) | {"tokens": len(tokens), "identity": identity}
    state = _State.open(folder, made_of, layout)
    runs = folder / "runs"
    if state.is_complete:
        for name, dtype in TABLE.items():
            crc = None if state.table_crc is None else state.table_crc[name]
            check(folder / f"{name}.bin", state.lengths[name] * dtype.itemsize, crc, _ANEW)
    else:
        runs.mkdir(exist_ok=True)
        if windows.sample is None:
            _write_runs(tokens, windows, state, runs)
        else:
            high, low = _drawn(tokens, windows, layout.run)
            _start_over(runs, state)
            _append(runs, state, *_split(high, low, windows.bits, state.parts))
            state.read = layout.windows
        _merge(windows, state, folder, runs)
        state.is_complete = True
        state.save()
    shutil.rmtree(runs, ignore_errors=True)
    table = {name: mapped(folder / f"{name}.bin", dtype) for name, dtype in TABLE.items()}
    if not len(table["tokens"]):
        raise UserError(
            f"no document of the corpus has {windows.n} tokens; there is no {windows.n}-gram"
        )
    return Table(**table, windows=windows, n_windows=state.counted)


@dataclass
class _State:
    """How far counting has come; on disk after every run and every part."""

    path: Path
    made_of: dict[str, Any]
    run: int
    parts: int
    read: int = 0  # windows whose runs are written
    run_bytes: list[int] = dataclasses.field(default_factory=list)  # of each part's file
    merged: int = 0  # parts that are in the table
    contexts: int = 0  # in the table
    pairs: int = 0
    counted: int = 0  # windows
    is_complete: bool = False
    # CRC-32 of what is in each part's file and in each file of the table; those begun by older
    # versions have none.
    run_crc: list[int] | None = None
    table_crc: dict[str, int] | None = None

    @property
    def lengths(self) -> dict[str, int]:
        """Of the columns of the table."""
        return {"starts": self.contexts, "tokens": self.pairs, "counts": self.pairs}

    @classmethod
    def open(cls, folder: Path, made_of: dict[str, Any], layout: Plan) -> _State:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / STATE
        if not path.exists():
            none = [0] * layout.parts
            return cls(
                path,
                made_of,
                layout.run,
                layout.parts,
                run_bytes=none,
                run_crc=none.copy(),
                table_crc=dict.fromkeys(TABLE, 0),
            )
        try:
            found = cls(path, **sealed.read(path, _ANEW))
        except TypeError as error:
            raise UserError(f"{path} is no state of a count: {error}; {_ANEW}") from error
        if found.made_of != made_of:
            raise UserError(f"{folder} holds counts of other windows; choose a new folder")
        return found

    def save(self) -> None:
        sealed.write(self.path, {k: v for k, v in vars(self).items() if k != "path"})


def _write_runs(tokens: Tokens, windows: Windows, state: _State, runs: Path) -> None:
    """Sorts and adds up the windows run by run, and appends each run to the files of its parts."""
    n_windows = len(tokens) - windows.n + 1
    with progress(f"counting {windows.n}-grams", n_windows) as advance:
        while state.read < n_windows:
            stop = min(state.read + state.run, n_windows)
            high, low = _keys(tokens, state.read, stop, windows)
            records, ends = _split(high, low, windows.bits, state.parts)
            del high, low
            _append(runs, state, records, ends)
            state.read = stop
            state.save()
            advance(stop)


def _keys(tokens: Tokens, start: int, stop: int, windows: Windows) -> tuple[np.ndarray, np.ndarray]:
    """Windows start … stop − 1 as numbers of 128 bits, the next token lowest: two uint64 arrays."""
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


def _drawn(tokens: Tokens, windows: Windows, run: int) -> tuple[np.ndarray, np.ndarray]:
    """The keys of a random sample of the windows: of least random numbers."""
    assert windows.sample is not None
    rng = np.random.default_rng(windows.seed)
    n_windows = len(tokens) - windows.n + 1
    high, low = (np.zeros(0, np.uint64) for _ in range(2))
    lots = np.zeros(0)
    with progress(f"drawing {windows.n}-grams", n_windows) as advance:
        for start in range(0, n_windows, run):
            more = _keys(tokens, start, min(start + run, n_windows), windows)
            lots = np.concatenate([lots, rng.random(len(more[0]))])
            high, low = (np.concatenate(pair) for pair in zip((high, low), more, strict=True))
            if len(lots) > windows.sample:
                kept = np.argpartition(lots, windows.sample - 1)[: windows.sample]
                high, low, lots = high[kept], low[kept], lots[kept]
            advance(min(start + run, n_windows))
    return high, low


def _split(
    high: np.ndarray, low: np.ndarray, bits: int, parts: int
) -> tuple[np.ndarray, np.ndarray]:
    """Keys sorted by part and key, equal ones added up: records, and where each part ends."""
    shift = np.uint64(_WORD - parts.bit_length() + 1)
    if parts == 1:
        records = _added_up(high, low, np.ones(len(low), np.uint32), np.lexsort((low, high)))
        return records, np.array([len(records)])
    part = _part(high, low, bits, shift)
    ones = np.ones(len(low), np.uint32)
    records = _added_up(high, low, ones, np.lexsort((low, high, part)))
    of_record = _part(records["high"], records["low"], bits, shift)
    return records, np.searchsorted(of_record, np.arange(parts, dtype=np.uint64), side="right")


def _part(high: np.ndarray, low: np.ndarray, bits: int, shift: np.uint64) -> np.ndarray:
    """The part that each key's context belongs to, uint64; it wraps around as it multiplies."""
    context = (high * _MIX_HIGH) ^ (low >> np.uint64(bits))
    context ^= context >> np.uint64(32)
    return np.asarray((context * _MIX) >> shift)


def _added_up(
    high: np.ndarray, low: np.ndarray, counts: np.ndarray, order: np.ndarray
) -> np.ndarray:
    """One record for each distinct key, in the order given, which has equal keys together."""
    high, low = high[order], low[order]
    first = np.flatnonzero(differs(high) | differs(low))
    records = np.empty(len(first), _RECORD)
    records["high"], records["low"] = high[first], low[first]
    if len(first):
        records["count"] = np.add.reduceat(counts[order], first, dtype=np.uint32)
    return records


def differs(values: np.ndarray) -> np.ndarray:
    """Whether each value differs from the one before it; the first does."""
    differs = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=differs[1:])
    return differs


def _start_over(runs: Path, state: _State) -> None:
    shutil.rmtree(runs)
    runs.mkdir()
    state.run_bytes, state.run_crc = [0] * state.parts, [0] * state.parts
    state.table_crc = dict.fromkeys(TABLE, 0)
    state.merged = state.contexts = state.pairs = state.counted = 0


def _append(runs: Path, state: _State, records: np.ndarray, ends: np.ndarray) -> None:
    """Adds the records of each part to its file, after what the state says is there."""
    for part, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        if end > start:
            write_at(runs / f"{part:04d}.bin", state.run_bytes[part], records[start:end])
            if state.run_crc is not None:
                state.run_crc[part] = zlib.crc32(records[start:end].data, state.run_crc[part])
            state.run_bytes[part] += (int(end) - int(start)) * _RECORD.itemsize


def _merge(windows: Windows, state: _State, folder: Path, runs: Path) -> None:
    """Turns the runs of each part into rows of the table, part by part."""
    with progress(f"merging {windows.n}-grams", state.parts) as advance:
        for part in range(state.merged, state.parts):
            path = runs / f"{part:04d}.bin"
            _check_run(path, state, part)
            records = _merged(path, state.run_bytes[part], state.run)
            # Within a part contexts are in the order of their keys, so equal ones are together.
            context = records["low"] >> np.uint64(windows.bits)
            begins = np.flatnonzero(differs(records["high"]) | differs(context))
            next_token = records["low"] & np.uint64(2**windows.bits - 1)
            columns = {
                "starts": (state.contexts, begins + state.pairs),
                "tokens": (state.pairs, next_token),
                "counts": (state.pairs, records["count"]),
            }
            for name, (offset, values) in columns.items():
                column = values.astype(TABLE[name])
                write_at(folder / f"{name}.bin", offset * column.itemsize, column)
                if state.table_crc is not None:
                    state.table_crc[name] = zlib.crc32(column.data, state.table_crc[name])
            state.contexts += len(begins)
            state.pairs += len(records)
            state.counted += int(records["count"].sum(dtype=np.int64))
            state.merged = part + 1
            state.save()
            advance(part + 1)


def _check_run(path: Path, state: _State, part: int) -> None:
    """Raises `UserError` where a part's file is not what was written; more may stand after it."""
    n_bytes = state.run_bytes[part]
    records = mapped(path, np.dtype(np.uint8))[:n_bytes]
    expected = None if state.run_crc is None else state.run_crc[part]
    if len(records) != n_bytes or expected not in (None, zlib.crc32(records.data)):
        raise UserError(f"{path} is damaged: its records are not those that were written; {_ANEW}")


def _merged(path: Path, n_bytes: int, at_once: int) -> np.ndarray:
    """The records of a file, sorted and added up, of which about so many are sorted at a time."""
    merged = np.zeros(0, _RECORD)
    stored = mapped(path, _RECORD)[: n_bytes // _RECORD.itemsize]
    start = 0
    while start < len(stored):
        stop = start + max(at_once - len(merged), at_once // 4, 1)
        records = np.concatenate([merged, stored[start:stop]])
        order = np.lexsort((records["low"], records["high"]))
        merged = _added_up(records["high"], records["low"], records["count"], order)
        start = stop
    return merged


def write_at(path: Path, offset: int, values: np.ndarray) -> None:
    """Writes values at an offset, so that what a killed process wrote after it is replaced."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.seek(offset)
        file.truncate()
        file.write(np.ascontiguousarray(values).data)


def mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    """The contents of a file, memory-mapped; no file and an empty one hold nothing."""
    if not path.exists() or not path.stat().st_size:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r")


def largest_id(tokens: Tokens, at_once: int = 2**22) -> int:
    """The greatest of the tokens; raises `UserError` where there is none."""
    if not len(tokens):
        raise UserError("the corpus has no tokens")
    starts: Sequence[int] = range(0, len(tokens), at_once)
    return max(int(tokens[start : start + at_once].max()) for start in starts)
