"""Arrays in .npz files: written atomically, and read so that damage anywhere in a file is found.

A zip file has a CRC-32 of each member. It is compared only if the member is read to its end, and
`numpy.load` stops early if a damaged header asks for less. A zip file also has a count of its
members. `zipfile` ignores it, so a damaged length of one entry hides the entries after it.
"""

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from bottleneck.errors import UserError
from bottleneck.storage.folders import cannot_read, write_whole


class Arrays(dict[str, np.ndarray]):
    """The arrays of a file by name; a missing one raises `UserError`."""

    def __init__(self, path: Path, arrays: dict[str, np.ndarray]):
        super().__init__(arrays)
        self._path = path

    def __missing__(self, name: str) -> np.ndarray:
        raise UserError(f"{self._path} has no array {name}; it has {', '.join(self) or 'none'}")


def write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Writes an .npz file atomically."""
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    write_whole(path, content.getvalue())


def read_arrays(path: Path, remedy: str = "delete it") -> Arrays:
    """Reads all arrays of an .npz file; never loads Python objects, which could run code.

    Raises `UserError`, which advises the remedy, if the file is missing or damaged.
    """
    try:
        arrays = {}
        packed = path.read_bytes()
        # Members are read into memory; nothing is extracted.
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:  # noqa: TID251
            at = packed.rindex(b"PK\x05\x06") + 10  # the number of members, in the last record
            if len(archive.infolist()) != int.from_bytes(packed[at : at + 2], "little"):
                raise ValueError("its list of arrays is damaged")
            for member in archive.infolist():
                content = io.BytesIO(archive.read(member))
                name = member.filename.removesuffix(".npy")
                arrays[name] = np.lib.format.read_array(content, allow_pickle=False)
                if content.read(1):
                    raise ValueError(f"{name} has bytes after its end")
        return Arrays(path, arrays)
    except OSError as error:
        raise cannot_read(path, error, remedy) from error
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, RuntimeError, MemoryError) as e:
        # RuntimeError: a damaged flag says that a member is encrypted or of an unknown compression.
        reason = " ".join(str(e).split()) or type(e).__name__
        raise UserError(f"{path} is not a whole .npz file ({reason}); {remedy}") from e
