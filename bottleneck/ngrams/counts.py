"""How often each token follows each context of a text, counted as a stream in bounded memory.

Windows (`ngram_keys`) are sorted and added up a run at a time. Where they are more than one run,
each run is split on disk by a hash of the context, so that the parts can be merged one by one; both
passes go on where a killed process stopped.

V: ids of the vocabulary; C: distinct contexts; a pair is a context and one of its next tokens.
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
_REMEDY = "delete the folder, and they are counted again"
_WINDOW_BYTES = 120  # of memory for each window of a run: keys, copies, the order of a sort
_MOST_PARTS = 1024  # files of one pass; their pieces stay long enough for a disk


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
    on_disk = (table + (RECORD.itemsize if parts > 1 else 0)) * kept
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
    with Workspace(folder, made_of, "counts", flag=None, remedy=_REMEDY).opened() as facts:
        state = _State.open(folder, layout)
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
                _start_over(runs, state)
                _append(runs, state, *sorted_by_part(high, low, windows.bits, state.parts))
                state.read = layout.windows
            _merge(windows, state, folder, runs)
            for name, crc in state.table_crc.items():
                path = folder / f"{name}.bin"
                _check_grown(path, state.lengths[name] * TABLE[name].itemsize, crc)
            facts.update(listed(folder, [f"{name}.bin" for name in TABLE]))
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
    run: int
    parts: int
    read: int = 0  # windows whose runs are written
    run_bytes: list[int] = dataclasses.field(default_factory=list)  # of each part's file
    merged: int = 0  # parts that are in the table
    contexts: int = 0  # in the table
    pairs: int = 0
    counted: int = 0  # windows
    # CRC-32 of the files that grow, which can be continued from its value after a kill.
    run_crc: list[int] = dataclasses.field(default_factory=list)
    table_crc: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(TABLE, 0))

    @property
    def lengths(self) -> dict[str, int]:
        """Of the columns of the table."""
        return {"starts": self.contexts, "tokens": self.pairs, "counts": self.pairs}

    @classmethod
    def open(cls, folder: Path, layout: Plan) -> _State:
        path = folder / STATE
        if not path.exists():
            zeros = [0] * layout.parts
            return cls(path, layout.run, layout.parts, run_bytes=zeros, run_crc=zeros.copy())
        try:
            return cls(path, **json_files.read(path, _REMEDY))
        except TypeError as error:
            raise UserError(f"{path} is no state of a count: {error}; {_REMEDY}") from error

    def save(self) -> None:
        json_files.write(self.path, {k: v for k, v in vars(self).items() if k != "path"})


def _write_runs(tokens: Tokens, windows: Windows, state: _State, runs: Path) -> None:
    """Sorts and adds up the windows run by run, and appends each run to the files of its parts."""
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
    """The keys of a random sample of the windows: of least random numbers."""
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
            state.run_crc[part] = zlib.crc32(records[start:end].data, state.run_crc[part])
            state.run_bytes[part] += (int(end) - int(start)) * RECORD.itemsize


def _merge(windows: Windows, state: _State, folder: Path, runs: Path) -> None:
    """Turns the runs of each part into rows of the table, part by part."""
    with Progress(f"merging {windows.n}-grams", state.parts) as progress:
        for part in range(state.merged, state.parts):
            path = runs / f"{part:04d}.bin"
            _check_grown(path, state.run_bytes[part], state.run_crc[part])
            stored = mapped(path, RECORD)[: state.run_bytes[part] // RECORD.itemsize]
            records = merge_records(stored, state.run)
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
                state.table_crc[name] = zlib.crc32(column.data, state.table_crc[name])
            state.contexts += len(begins)
            state.pairs += len(records)
            state.counted += int(records["count"].sum(dtype=np.int64))
            state.merged = part + 1
            state.save()
            progress.show(part + 1)


def _check_grown(path: Path, n_bytes: int, crc: int) -> None:
    """Raises `UserError` if the start of a file is not what was written; more may follow it."""
    records = mapped(path, np.dtype(np.uint8))[:n_bytes]
    if len(records) != n_bytes or zlib.crc32(records.data) != crc:
        raise damaged(path, "its records are not those that were written", _REMEDY)


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
