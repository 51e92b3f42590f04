"""A long sequence of tokens on disk: written as a stream, read and checked by slices.

The files hold little-endian uint16 or uint32, SHARD_TOKENS tokens each except the last. Beside each
is a table, uint32, with the CRC-32 of every block of BLOCK_BYTES. The first read of a block checks
it, so a damaged token is never used, and opening reads no tokens.
"""

import bisect
import hashlib
import itertools
import os
import weakref
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from bottleneck.storage.checksums import FileInfo, damaged, info_of, read_whole
from bottleneck.storage.folders import cannot_read

REBUILD = "make it again with `python -m bottleneck prepare --rebuild` and the same --config"

SHARD_TOKENS = 2**28  # half a gigabyte of uint16

# 16 windows of 2,048 uint16 tokens. Windows are read in random order, and the first one in a block
# reads all of it: no more than a page fault of a memory map reads, and 17 µs to check. Blocks of 4
# to 16 KiB were no faster from a cold disk. The tables are 6 MB for 100 GB of tokens. A CRC-32 of a
# block this short finds any two wrong bits, any burst of 32, and all but one in 4·10⁹ other errors.
BLOCK_BYTES = 2**16

CHECKSUMS = ".crc32"  # the suffix of the tables
DTYPES = ("<u2", "<u4")  # of tokens on disk
_CHECKSUM = np.dtype("<u4")


def token_dtype(vocab_size: int) -> np.dtype:
    """Returns the smallest type on disk that holds every id below vocab_size."""
    return np.dtype(DTYPES[vocab_size > 2**16])


class ShardWriter:
    """Appends tokens to PREFIX-00000.bin, PREFIX-00001.bin, and so on, each with its checksums."""

    def __init__(self, folder: Path, prefix: str, dtype: np.dtype) -> None:
        self.tokens = 0
        self.shards: list[str] = []  # complete ones; all of them once closed
        self.files: dict[str, FileInfo] = {}  # the shards and their tables
        self._folder, self._prefix, self._dtype = folder, prefix, dtype
        self._file: BinaryIO | None = None

    def append(self, tokens: np.ndarray) -> None:
        while len(tokens):
            if self._file is None:
                path = self._folder / f"{self._prefix}-{len(self.shards):05d}.bin"
                self._file, self._digest = path.open("wb"), hashlib.sha256()
                self._checksums: list[int] = []
                self._block = bytearray()  # the last, incomplete one
            room = SHARD_TOKENS - self.tokens % SHARD_TOKENS
            contents = tokens[:room].astype(self._dtype).tobytes()
            self._file.write(contents)
            self._digest.update(contents)
            self._block += contents
            end = len(self._block) // BLOCK_BYTES * BLOCK_BYTES
            for i in range(0, end, BLOCK_BYTES):
                self._checksums.append(zlib.crc32(self._block[i : i + BLOCK_BYTES]))
            del self._block[:end]
            self.tokens += len(tokens[:room])
            tokens = tokens[room:]
            if self.tokens % SHARD_TOKENS == 0:
                self.close()

    def close(self) -> None:
        """Completes the last file."""
        file, self._file = self._file, None
        if file is None:
            return
        with file:
            info = FileInfo(file.tell(), self._digest.hexdigest())
        if self._block:
            self._checksums.append(zlib.crc32(self._block))
        path, table = Path(file.name), np.array(self._checksums, _CHECKSUM).tobytes()
        _table_of(path).write_bytes(table)
        self.shards.append(path.name)
        self.files |= {path.name: info, _table_of(path).name: info_of(table)}


class TokenSequence:
    """The concatenated tokens of some shards; safe to read from many threads."""

    def __init__(
        self, folder: Path, shards: Sequence[str], files: Mapping[str, FileInfo], dtype: np.dtype
    ) -> None:
        """Opens shards that a `ShardWriter` wrote, by name, in order; `files` describes them.

        Raises `UserError` if a file cannot be opened, or a table has changed.
        """
        self._dtype = dtype
        self._shards = [_Shard(folder / name, files) for name in shards]
        lengths = (shard.bytes // dtype.itemsize for shard in self._shards)
        self._starts = [0, *itertools.accumulate(lengths)]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, span: slice) -> np.ndarray:
        """Returns a copy of the tokens in a slice without a step, in their type on disk.

        Raises `UserError` if they have changed since they were written.
        """
        start, stop, step = span.indices(len(self))
        assert step == 1, step
        size = self._dtype.itemsize
        pieces = []
        for i in range(bisect.bisect_right(self._starts, start) - 1, len(self._shards)):
            offset, last = self._starts[i], min(stop, self._starts[i + 1])
            if start >= last:
                break
            pieces.append(self._shards[i].read((start - offset) * size, (last - offset) * size))
            start = last
        return np.frombuffer(bytearray().join(pieces), self._dtype)


class _Shard:
    """The bytes of a file; the first read of a block checks it.

    A memory map would end the process with a signal on a failing disk or a truncated file; a read
    returns an error.
    """

    def __init__(self, path: Path, files: Mapping[str, FileInfo]) -> None:
        table = _table_of(path)
        self.bytes = files[path.name].bytes
        self._path = path
        contents = read_whole(table, files[table.name], REBUILD)
        self._checksums: list[int] = np.frombuffer(contents, _CHECKSUM).tolist()
        # One byte per block. Two threads that check the same block do no harm.
        self._is_checked = bytearray(len(self._checksums))
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise cannot_read(path, error, REBUILD) from error
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, start: int, stop: int) -> bytes:
        """Returns the bytes in [start, stop); raises `UserError` if they have changed."""
        first, last = start // BLOCK_BYTES, -(-stop // BLOCK_BYTES)
        while (block := self._is_checked.find(0, first, last)) >= 0:
            begin, end = block * BLOCK_BYTES, min((block + 1) * BLOCK_BYTES, self.bytes)
            if zlib.crc32(self._contents(begin, end)) != self._checksums[block]:
                problem = f"bytes {begin:,} to {end:,} fail their CRC-32"
                raise damaged(self._path, problem, REBUILD)
            self._is_checked[block] = 1
        return self._contents(start, stop)

    def _contents(self, start: int, stop: int) -> bytes:
        contents = b""
        try:
            while len(contents) < stop - start:  # a read may end early
                place = start + len(contents)
                more = os.pread(self._descriptor, stop - place, place)
                if not more:
                    problem = f"it has {place:,} bytes instead of {self.bytes:,}"
                    raise damaged(self._path, problem, REBUILD)
                contents += more
        except OSError as error:
            raise cannot_read(self._path, error, REBUILD) from error
        return contents


def _table_of(shard: Path) -> Path:
    return shard.with_suffix(CHECKSUMS)
