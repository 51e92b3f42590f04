"""One interface to folders on a disk and in a bucket of Google Cloud Storage.

etils, TensorStore and orbax all open `gs://`. A bucket has no append and no rename. An object
appears, and is replaced, only when it is complete.
"""

import contextlib
import errno
import fcntl
import glob
import importlib.util
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from bottleneck.errors import UserError

_SCHEME = "gs://"
_LONGEST = 255  # bytes of a name, on most disks


def is_remote(path: str | os.PathLike[str]) -> bool:
    return "://" in os.fspath(path)


def as_path(path: str | os.PathLike[str]) -> Path:
    """Returns the path, with ~ expanded, or its like for gs://; raises `UserError` if invalid."""
    text = os.fspath(path)
    if "\0" in text or any(len(os.fsencode(part)) > _LONGEST for part in text.split("/")):
        raise UserError(f"{text[:60]!r} is not a path: a name in it is too long, or has a NUL")
    if not is_remote(text):
        return Path(text).expanduser()
    if not text.startswith(_SCHEME):
        raise UserError(f"{text} is not supported; a remote folder must be gs://BUCKET/…")
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"{text} needs gcsfs; in the repository: pip install -e '.[gcs]'")
    import fsspec.config
    from etils import epath

    # Other processes write there too, so cached listings would be stale.
    fsspec.config.conf.setdefault("gs", {})["use_listings_cache"] = False
    return epath.Path(text)  # type: ignore[return-value]


def absolute(path: Path) -> Path:
    """Returns the same path for every name of a folder."""
    return path if is_remote(path) else path.resolve()


def is_inside(name: str) -> bool:
    """Returns True if a name from data, joined to a folder, stays inside it."""
    path = PurePosixPath(name)
    return path.parts != () and not path.is_absolute() and ".." not in path.parts


def size(path: Path) -> int:
    """Bytes of a file."""
    status: Any = path.stat()
    return status.length if is_remote(path) else status.st_size


def changed(path: Path) -> int:
    """Time of a file's last change, in seconds since 1970."""
    status: Any = path.stat()
    return int(status.mtime if is_remote(path) else status.st_mtime)


def matches(pattern: Path) -> list[Path]:
    """Returns the paths that a glob matches; a bucket allows wildcards only in the last part."""
    if is_remote(pattern):
        found = sorted(pattern.parent.glob(pattern.name))
        return [path for path in found if not path.name.startswith(".")]
    return [Path(match) for match in glob.glob(str(pattern), recursive=True)]


def visible_files(folder: Path) -> list[Path]:
    """Returns all files below a folder, except hidden ones and those in hidden folders."""
    found = []
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            found.append(path)
        elif is_remote(path) or not path.is_symlink():  # a link may lead back
            found += visible_files(path)
    return found


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file atomically: it is complete on disk before it gets its name.

    Raises: `UserError` if it cannot be written; an earlier file then stays.
    """
    with writing(path, len(content)):
        if is_remote(path):
            path.write_bytes(content)
            return
        draft = path.with_name(f".{path.name}.draft")
        try:
            with draft.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def writing(path: Path, size: int | None = None) -> Iterator[None]:
    """Raises `UserError` instead of an `OSError` of the block, which writes `size` bytes."""
    try:
        yield
    except OSError as error:
        raise UserError(cannot_write(path, error.errno, str(error), size)) from error


def cannot_write(path: Path, number: int | None, reason: str, size: int | None = None) -> str:
    """Returns the message for a failed write of `path`; `number` is the error's errno, if any."""
    line = f"cannot write {path}: {os.strerror(number) if number else reason}"
    if number in (errno.ENOSPC, errno.EDQUOT) and size is not None:
        line += f"; it takes {size:,} bytes"
    if number == errno.ENOSPC:
        line += f"; {free_bytes(path):,} are free"
    return line


def free_bytes(path: Path) -> int:
    """Bytes left on the disk of a path that may not exist yet."""
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def cannot_read(path: Path | str, error: OSError, remedy: str = "") -> UserError:
    advice = f"; {remedy}" if remedy else ""
    return UserError(f"cannot read {path}: {error.strerror or error}{advice}")


@contextlib.contextmanager
def locked(path: Path, busy: Callable[[str], None]) -> Iterator[None]:
    """Holds a lock file during the block; the system releases it if the process dies.

    If another process has the lock, calls `busy` with its name, "process 12 on HOST", which raises,
    or returns to wait. Raises `OSError` if the lock file cannot be written.
    """
    while True:
        with path.open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                busy(file.read() or "another process")
                fcntl.flock(file, fcntl.LOCK_EX)
            # Otherwise its holder removed it while this process waited.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.seek(0)
                file.truncate()
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
                yield
                return


def is_locked(path: Path) -> bool:
    """Returns True while a process holds a lock file."""
    if not path.exists():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
