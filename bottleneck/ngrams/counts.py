"""Counts of the tokens that follow each context of a text, made as a stream in bounded memory.

Windows are sorted and added up a run at a time. If there are several runs, a hash of the context
splits each run into parts on disk, and the parts are merged one by one. Both passes resume after a
kill. C: distinct contexts; a pair is a context and one of its next tokens.
"""

from __future__ import annotations

import dataclasses
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bottleneck.errors import UserError
from bottleneck.ngrams.windows import (
    RECORD,
    Tokens,
    Windows,
    differs,
    keys,
    merge_records,
    sorted_by_part,
)
from bottleneck.storage import json_files
from bottleneck.storage.checksums import check, damaged, listed, read_infos
from bottleneck.storage.workspace import DONE, Workspace
from bottleneck.terminal import Progress

STATE = "state.json"
TABLE: dict[str, np.dtype] = {
    "starts": np.dtype("<i8"),
    "tokens": np.dtype("<u4"),
    "counts": np.dtype("<u4"),
}
Block = tuple[int, np.ndarray, np.ndarray, np.ndarray]  # see `Table.blocks`
_REMEDY = "delete the folder, and they are counted again"
_WINDOW_BYTES = 120  # of memory for a window and its place in a sort
_MOST_PARTS = 1024  # more would make short pieces
_BLOCK_PAIRS = 2**21  # in memory at a time: some 100 MB


@dataclass(frozen=True)
class CountPlan:
    """The layout of a count, and its cost."""

    windows: int  # at most
    run: int  # windows sorted at a time
    parts: int  # of each run, a power of two; 1: no split
    memory: int  # bytes at most, beside the libraries
    disk: int  # bytes at most, with the table

    @property
    def sentence(self) -> str:
        how = "in one run" if self.parts == 1 else f"in {-(-self.windows // self.run):,} runs"
        parts = f", merged in {self.parts:,} parts" if self.parts > 1 else ""
        return (
            f"{self.windows:,} windows {how} of at most {self.run:,}{parts}: at most "
            f"{self.memory / 1e9:.2f} GB of memory and {self.disk / 1e9:.2f} GB of disk"
        )


def plan(n_tokens: int, windows: Windows, memory: float) -> CountPlan:
    """Returns the layout of a count within a number of bytes of memory.

    Raises: `UserError` if the text is shorter than a window, or the memory too small for a run.
    """
    n_windows = n_tokens - windows.n + 1
    if n_windows < 1:
        least = f"at least {windows.n} are needed for one {windows.n}-gram"
        raise UserError(f"the corpus has {n_tokens} tokens; {least}")
    # A sample and its random numbers are in memory beside a run.
    beside = _WINDOW_BYTES * min(windows.sample or 0, n_windows)
    run = min(int((memory - beside) // _WINDOW_BYTES), n_windows)
    if run < min(n_windows, 1000):
        raise UserError(f"{memory / 1e9:g} GB of memory is too little to count windows; give more")
    parts = 1
    if run < n_windows and windows.sample is None:
        # The hash fills parts unevenly: this leaves a factor of two.
        while parts * run < 2 * n_windows and parts < _MOST_PARTS:
            parts *= 2
    table = sum(dtype.itemsize for dtype in TABLE.values())
    kept = min(windows.sample or n_windows, n_windows)
    on_disk = (table + (RECORD.itemsize if parts > 1 else 0)) * kept
    return CountPlan(n_windows, run, parts, _WINDOW_BYTES * run + beside, on_disk)


@dataclass(frozen=True)
class Table:
    """The counts by context, memory-mapped, in an arbitrary order of contexts."""

    starts: np.ndarray  # int64 [C]: the first pair of each context
    tokens: np.ndarray  # uint32 [pairs]
    counts: np.ndarray  # uint32 [pairs], at least 1
    windows: Windows
    n_windows: int  # the sum of the counts

    @classmethod
    def stored(cls, folder: Path, windows: Windows, n_windows: int) -> Table:
        """Returns the table whose columns are files of a folder."""
        columns = {name: mapped(folder / f"{name}.bin", dtype) for name, dtype in TABLE.items()}
        return cls(**columns, windows=windows, n_windows=n_windows)

    @property
    def n_contexts(self) -> int:
        return len(self.starts)

    def blocks(self, pairs: int = _BLOCK_PAIRS) -> Iterator[Block]:
        """Yields pieces of about `pairs` pairs: index of the first context, starts, tokens, counts.

        The starts are relative to the piece.
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
    """Returns the counts of all windows, kept in a folder; resumes after a killed process.

    A finished table is read through once to check it, about a second per gigabyte.

    Args:
        memory: bytes for sorting, beside the libraries.
        identity: of the tokens, such as their hash; counts of other tokens are refused.
    Raises: `UserError` if there is no window, an id is not below V, or the folder is damaged.
    """
    layout = plan(len(tokens), windows, memory)
    made_of = dataclasses.asdict(windows) | {"tokens": len(tokens), "identity": identity}
    with Workspace(folder, made_of, "counts", flag=None, remedy=_REMEDY).opened() as facts:
        state = _CountState.open(folder, layout)
        runs = folder / "runs"
        if facts:
            for name, info in read_infos(folder / DONE, _REMEDY).items():
                check(folder / name, info, _REMEDY)
        else:
            runs.mkdir(exist_ok=True)
            if windows.sample is None:
                _write_runs(tokens, windows, state, runs)
            else:
                high, low = _drawn(tokens, windows, layout.run)
                state = _CountState.new(folder, layout)
                _append(runs, state, *sorted_by_part(high, low, windows.bits, state.parts))
                state.read = layout.windows
            _merge(windows, state, folder, runs)
            for name, crc in state.table_crc.items():
                path = folder / f"{name}.bin"
                _check_grown(path, state.lengths[name] * TABLE[name].itemsize, crc)
            facts.update(listed(folder, [f"{name}.bin" for name in TABLE]))
        shutil.rmtree(runs, ignore_errors=True)
    table = Table.stored(folder, windows, state.counted)
    if not len(table.tokens):
        raise UserError(
            f"no document of the corpus has {windows.n} tokens, so there are no {windows.n}-grams"
        )
    return table


@dataclass
class _CountState:
    """The progress of a count, saved after every run and every part."""

    path: Path
    run: int
    parts: int
    read: int = 0  # windows in written runs
    run_bytes: list[int] = dataclasses.field(default_factory=list)  # of each part's file
    merged: int = 0  # parts in the table
    contexts: int = 0  # in the table
    pairs: int = 0
    counted: int = 0  # windows
    # Unlike a sha256, the CRC-32 of a growing file can be continued after a kill.
    run_crc: list[int] = dataclasses.field(default_factory=list)
    table_crc: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(TABLE, 0))

    @property
    def lengths(self) -> dict[str, int]:
        """Lengths of the table's columns."""
        return {"starts": self.contexts, "tokens": self.pairs, "counts": self.pairs}

    @classmethod
    def new(cls, folder: Path, layout: CountPlan) -> _CountState:
        zeros = [0] * layout.parts
        return cls(folder / STATE, layout.run, layout.parts, run_bytes=zeros, run_crc=[*zeros])

    @classmethod
    def open(cls, folder: Path, layout: CountPlan) -> _CountState:
        path = folder / STATE
        if not path.exists():
            return cls.new(folder, layout)
        try:
            return cls(path, **json_files.read(path, _REMEDY))
        except TypeError as error:
            raise UserError(f"{path} is not the state of a count: {error}; {_REMEDY}") from error

    def save(self) -> None:
        json_files.write(self.path, {k: v for k, v in vars(self).items() if k != "path"})


def _write_runs(tokens: Tokens, windows: Windows, state: _CountState, runs: Path) -> None:
    """Sorts and adds up the windows of each run, and appends them to the files of their parts."""
    n_windows = len(tokens) - windows.n + 1
    with Progress(f"counting {windows.n}-grams", n_windows) as progress:
        while state.read < n_windows:
            stop = min(state.read + state.run, n_windows)
            high, low = keys(tokens, state.read, stop, windows)
            records, ends = sorted_by_part(high, low, windows.bits, state.parts)
            del high, low
            _append(runs, state, records, ends)
            state.read = stop
            state.save()
            progress.show(stop)


def _drawn(tokens: Tokens, windows: Windows, run: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the keys of a random sample of the windows."""
    assert windows.sample is not None
    rng = np.random.default_rng(windows.seed)
    n_windows = len(tokens) - windows.n + 1
    high, low = (np.zeros(0, np.uint64) for _ in range(2))
    lots = np.zeros(0)
    with Progress(f"drawing {windows.n}-grams", n_windows) as progress:
        for start in range(0, n_windows, run):
            more = keys(tokens, start, min(start + run, n_windows), windows)
            lots = np.concatenate([lots, rng.random(len(more[0]))])
            high, low = (np.concatenate(pair) for pair in zip((high, low), more, strict=True))
            if len(lots) > windows.sample:
                kept = np.argpartition(lots, windows.sample - 1)[: windows.sample]
                high, low, lots = high[kept], low[kept], lots[kept]
            progress.show(min(start + run, n_windows))
    return high, low


def _append(runs: Path, state: _CountState, records: np.ndarray, ends: np.ndarray) -> None:
    """Appends the records of each part to its file, after the length in the state."""
    for part, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        if end > start:
            write_at(runs / f"{part:04d}.bin", state.run_bytes[part], records[start:end])
            state.run_crc[part] = zlib.crc32(records[start:end].data, state.run_crc[part])
            state.run_bytes[part] += (int(end) - int(start)) * RECORD.itemsize


def _merge(windows: Windows, state: _CountState, folder: Path, runs: Path) -> None:
    """Turns the runs of each part into rows of the table, part by part."""
    with Progress(f"merging {windows.n}-grams", state.parts) as progress:
        for part in range(state.merged, state.parts):
            path = runs / f"{part:04d}.bin"
            _check_grown(path, state.run_bytes[part], state.run_crc[part])
            stored = mapped(path, RECORD)[: state.run_bytes[part] // RECORD.itemsize]
            records = merge_records(stored, state.run)
            # Records are sorted by key, so those of one context are adjacent.
            context = records["low"] >> np.uint64(windows.bits)
            begins = np.flatnonzero(differs(records["high"]) | differs(context))
            next_token = records["low"] & np.uint64(2**windows.bits - 1)
            columns = (begins + state.pairs, next_token, records["count"])
            for (name, dtype), values in zip(TABLE.items(), columns, strict=True):
                column = values.astype(dtype)
                write_at(folder / f"{name}.bin", state.lengths[name] * dtype.itemsize, column)
                state.table_crc[name] = zlib.crc32(column.data, state.table_crc[name])
            state.contexts += len(begins)
            state.pairs += len(records)
            state.counted += int(records["count"].sum(dtype=np.int64))
            state.merged = part + 1
            state.save()
            progress.show(part + 1)


def _check_grown(path: Path, n_bytes: int, crc: int) -> None:
    """Raises `UserError` if the first bytes of a file are not those written; more may follow."""
    records = mapped(path, np.dtype(np.uint8))[:n_bytes]
    if len(records) != n_bytes or zlib.crc32(records.data) != crc:
        raise damaged(path, "its records are not those that were written", _REMEDY)


def write_at(path: Path, offset: int, values: np.ndarray) -> None:
    """Writes values at an offset and cuts the file after them."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.seek(offset)
        file.truncate()
        file.write(np.ascontiguousarray(values).data)


def mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    """Returns the contents of a file, memory-mapped; empty if the file is missing or empty."""
    if not path.exists() or not path.stat().st_size:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r")
