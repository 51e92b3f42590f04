"""A long sequence of tokens on disk: written as a stream, read through memory maps.

It lies in files of little-endian uint16 or uint32, of SHARD_TOKENS tokens each but the last.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

SHARD_TOKENS = 2**28  # half a gigabyte of uint16


@dataclass(frozen=True)
class FileInfo:
    """What a file was when it was written."""

    bytes: int
    sha256: str


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest type on disk that holds every id below vocab_size."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


class ShardWriter:
    """Appends tokens to PREFIX-00000.bin, PREFIX-00001.bin, and so on."""

    def __init__(self, folder: Path, prefix: str, dtype: np.dtype) -> None:
        self.tokens = 0
        self.files: dict[str, FileInfo] = {}  # those that are complete; all of them once closed
        self._folder, self._prefix, self._dtype = folder, prefix, dtype
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()

    def append(self, tokens: np.ndarray) -> None:
        while len(tokens):
            if self._file is None:
                path = self._folder / f"{self._prefix}-{len(self.files):05d}.bin"
                self._file, self._digest = path.open("wb"), hashlib.sha256()
            room = SHARD_TOKENS - self.tokens % SHARD_TOKENS
            contents = tokens[:room].astype(self._dtype).tobytes()
            self._file.write(contents)
            self._digest.update(contents)
            self.tokens += len(tokens[:room])
            tokens = tokens[room:]
            if self.tokens % SHARD_TOKENS == 0:
                self.close()

    def close(self) -> None:
        """Completes the last file."""
        file, self._file = self._file, None
        if file is not None:
            with file:
                info = FileInfo(file.tell(), self._digest.hexdigest())
            self.files[Path(file.name).name] = info


class TokenSequence:
    """The tokens of some shards one after the other, read where they are asked for."""

    def __init__(self, paths: Sequence[Path], dtype: np.dtype) -> None:
        self._shards = [np.memmap(path, dtype, mode="r") for path in paths]
        self._starts = [0, *itertools.accumulate(len(shard) for shard in self._shards)]
        self._nothing = np.zeros(0, dtype)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, span: slice) -> np.ndarray:
        """A copy of the tokens in a slice without a step, in their type on disk."""
        start, stop, step = span.indices(len(self))
        assert step == 1, step
        pieces = [self._nothing]
        for i in range(bisect.bisect_right(self._starts, start) - 1, len(self._shards)):
            if self._starts[i] >= stop:
                break
            pieces.append(self._shards[i][max(start - self._starts[i], 0) : stop - self._starts[i]])
        return np.concatenate(pieces)
