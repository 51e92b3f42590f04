"""Files that are known by their sizes and hashes, and what is said of one that has changed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from bottleneck.errors import UserError

REBUILD = "make it anew with `python -m bottleneck prepare --rebuild` and the same --config"


@dataclass(frozen=True)
class FileInfo:
    """What a file was when it was written."""

    bytes: int
    sha256: str


def info_of(contents: bytes) -> FileInfo:
    return FileInfo(len(contents), hashlib.sha256(contents).hexdigest())


def check_size(path: Path, info: FileInfo) -> None:
    """Raises `UserError` where a file is missing or has another size."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        size = 0
    except OSError as error:
        raise cannot_read(path, error) from error
    if size != info.bytes:
        raise damaged(path, f"it has {size:,} bytes instead of {info.bytes:,}")


def check_contents(path: Path, info: FileInfo) -> None:
    """Reads a file of any size; raises `UserError` where it is not what it was."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise cannot_read(path, error) from error
    if found != info.sha256:
        raise damaged(path, "its sha256 is not the manifest's")


def read_whole(path: Path, info: FileInfo) -> bytes:
    """The contents of a small file; raises `UserError` where they are not what they were."""
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise cannot_read(path, error) from error
    if info_of(contents) != info:
        raise damaged(path, "its sha256 is not the manifest's")
    return contents


def cannot_read(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot read {path}: {error.strerror or error}; {REBUILD}")


def damaged(path: Path, how: str) -> UserError:
    return UserError(f"{path} is damaged: {how}; {REBUILD}")
