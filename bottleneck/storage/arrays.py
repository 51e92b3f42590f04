"""Arrays in files: written whole, and read so that damage anywhere in a file is found.

A zip file has a CRC-32 of each of its members, which counts only where the member is read to its
end: `numpy.load` does not where damage has made an array's header ask for less. And it says how
many members it has, which `zipfile` does not look at: damage to the length of one entry of its list
hides those after it.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from bottleneck.errors import UserError
from bottleneck.storage.folders import write_whole


class Arrays(dict[str, np.ndarray]):
    """The arrays of a file by name; to ask for one that it lacks is a `UserError`."""

    def __init__(self, path: Path, arrays: dict[str, np.ndarray]):
        super().__init__(arrays)
        self._path = path

    def __missing__(self, name: str) -> np.ndarray:
        raise UserError(f"{self._path} has no array {name}; it has {', '.join(self) or 'none'}")


def write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Writes an .npz file that is there whole or not at all."""
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    write_whole(path, content.getvalue())


def read_arrays(path: Path, remedy: str = "delete it") -> Arrays:
    """All arrays of an .npz file; Python objects, which could run code, are never loaded.

    Args:
        remedy: what the user can do where the file is damaged.
    Raises: `UserError` where it is missing, or not what was written.
    """
    try:
        arrays = {}
        packed = path.read_bytes()
        # Nothing is extracted: its members are read into memory.
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:  # noqa: TID251
            if len(archive.infolist()) != _n_members(packed):
                raise ValueError("its list of arrays is damaged")
            for member in archive.infolist():
                content = io.BytesIO(archive.read(member))
                name = member.filename.removesuffix(".npy")
                arrays[name] = np.lib.format.read_array(content, allow_pickle=False)
                if content.read(1):
                    raise ValueError(f"{name} is followed by something else")
        return Arrays(path, arrays)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; {remedy}") from error
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, RuntimeError, MemoryError) as e:
        # RuntimeError: of a damaged flag, that a member is encrypted, or packed in an unknown way.
        reason = " ".join(str(e).split()) or type(e).__name__
        raise UserError(f"{path} is not a whole .npz file ({reason}); {remedy}") from e


def _n_members(packed: bytes) -> int:
    """How many members a zip file says that it has, in the record at its end."""
    start = packed.rindex(b"PK\x05\x06") + 10
    return int.from_bytes(packed[start : start + 2], "little")
