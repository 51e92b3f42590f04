"""Files that are known by their sizes and hashes, and the error for one that has changed.

A list of them in JSON is {"files": {name: {"bytes": …, "sha256": …}}}, the names within one folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bottleneck.errors import UserError
from bottleneck.storage import json_files
from bottleneck.storage.folders import is_inside, is_remote, size

_AT_ONCE = 8  # files; a hash runs without the interpreter's lock


@dataclass(frozen=True)
class FileInfo:
    """The size and hash of a file when it was written."""

    bytes: int
    sha256: str | None  # None: not known of a file in a bucket, which keeps checksums itself


def info_of(contents: bytes) -> FileInfo:
    return FileInfo(len(contents), hashlib.sha256(contents).hexdigest())


def info_of_file(path: Path) -> FileInfo:
    """Reads a file of any size through; takes the size alone of one in a bucket."""
    if is_remote(path):
        return FileInfo(size(path), None)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileInfo(os.fstat(file.fileno()).st_size, digest)


def listed(folder: Path, names: Iterable[str]) -> dict[str, Any]:
    """The list of some files of a folder, as they are now."""
    names = list(names)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        infos = pool.map(lambda name: info_of_file(folder / name), names)
        return {"files": {n: dataclasses.asdict(i) for n, i in zip(names, infos, strict=True)}}


def infos_in(record: Any) -> dict[str, FileInfo]:
    """Name → info of a list of files; raises `ValueError`, in one line, if it is none."""
    try:
        files = record["files"].items()
        infos = {str(name): FileInfo(int(one["bytes"]), one["sha256"]) for name, one in files}
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise ValueError("it does not list files with their bytes and sha256") from error
    # It may come from a stranger, and a seal that agrees with itself is soon made.
    if outside := sorted(name for name in infos if not is_inside(name)):
        raise ValueError(f"it names {outside[0]!r}, which is not in its folder")
    return infos


def read_infos(path: Path, remedy: str) -> dict[str, FileInfo]:
    """The infos in a sealed list of files; raises `UserError` if it is missing or damaged."""
    try:
        return infos_in(json_files.read(path, remedy))
    except ValueError as error:
        raise damaged(path, str(error), remedy) from error


def difference(path: Path, info: FileInfo, *, size_only: bool = False) -> str | None:
    """Says how a file differs from what was written; None if it does not.

    Raises: `OSError` if the file is there and cannot be read.
    """
    try:
        found = FileInfo(size(path), None) if size_only else info_of_file(path)
    except FileNotFoundError:
        return "it is missing"
    if found.bytes != info.bytes:
        return f"it has {found.bytes:,} bytes instead of {info.bytes:,}"
    if None not in (found.sha256, info.sha256) and found.sha256 != info.sha256:
        return "its sha256 is not that of what was written"
    return None


def check(path: Path, info: FileInfo, remedy: str, *, size_only: bool = False) -> None:
    """Raises `UserError` if a file of any size is not what was written; reads it through."""
    try:
        problem = difference(path, info, size_only=size_only)
    except OSError as error:
        raise cannot_read(path, error, remedy) from error
    if problem is not None:
        raise damaged(path, problem, remedy)


def read_whole(path: Path, info: FileInfo, remedy: str) -> bytes:
    """The contents of a small file; raises `UserError` if they are not what was written."""
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise cannot_read(path, error, remedy) from error
    if info_of(contents) != info:
        raise damaged(path, "its sha256 is not that of what was written", remedy)
    return contents


def cannot_read(path: Path, error: OSError, remedy: str) -> UserError:
    return UserError(f"cannot read {path}: {error.strerror or error}; {remedy}")


def damaged(path: Path, how: str, remedy: str) -> UserError:
    return UserError(f"{path} is damaged: {how}; {remedy}")
