"""Sizes and hashes of files, and the errors for a file that has changed.

In JSON they are {"files": {name: {"bytes": …, "sha256": …}}}, with names inside one folder.
"""

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
from bottleneck.storage.folders import cannot_read, is_inside, is_remote, size

_AT_ONCE = 8  # files; hashing releases the interpreter's lock


@dataclass(frozen=True)
class FileInfo:
    """The size and hash of a file when it was written."""

    bytes: int
    sha256: str | None  # None in a bucket, which keeps its own checksums


def info_of(contents: bytes) -> FileInfo:
    return FileInfo(len(contents), hashlib.sha256(contents).hexdigest())


def info_of_file(path: Path) -> FileInfo:
    """Hashes a file of any size; takes only the size of one in a bucket."""
    if is_remote(path):
        return FileInfo(size(path), None)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileInfo(os.fstat(file.fileno()).st_size, digest)


def listed(folder: Path, names: Iterable[str]) -> dict[str, Any]:
    """Returns the JSON list of some files of a folder, as they are now."""
    names = list(names)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        infos = pool.map(lambda name: info_of_file(folder / name), names)
        return {"files": {n: dataclasses.asdict(i) for n, i in zip(names, infos, strict=True)}}


def infos_in(record: Any) -> dict[str, FileInfo]:
    """Parses a JSON list of files to name → info; raises a one-line `ValueError`."""
    try:
        files = record["files"].items()
        infos = {str(name): FileInfo(int(one["bytes"]), one["sha256"]) for name, one in files}
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise ValueError("it does not list files with their bytes and sha256") from error
    # The list may come from a stranger, who can seal anything.
    if outside := sorted(name for name in infos if not is_inside(name)):
        raise ValueError(f"it names {outside[0]!r}, which is not in its folder")
    return infos


def read_infos(path: Path, remedy: str) -> dict[str, FileInfo]:
    """Reads a sealed list of files; raises `UserError` if it is missing or damaged."""
    try:
        return infos_in(json_files.read(path, remedy))
    except ValueError as error:
        raise damaged(path, str(error), remedy) from error


def difference(path: Path, info: FileInfo, *, size_only: bool = False) -> str | None:
    """Describes how a file differs from what was written, if it does; may raise `OSError`."""
    try:
        found = FileInfo(size(path), None) if size_only else info_of_file(path)
    except FileNotFoundError:
        return "it is missing"
    if found.bytes != info.bytes:
        return f"it has {found.bytes:,} bytes instead of {info.bytes:,}"
    if None not in (found.sha256, info.sha256) and found.sha256 != info.sha256:
        return "its sha256 has changed"
    return None


def check(path: Path, info: FileInfo, remedy: str, *, size_only: bool = False) -> None:
    """Raises `UserError` if a file of any size has changed; reads all of it."""
    try:
        problem = difference(path, info, size_only=size_only)
    except OSError as error:
        raise cannot_read(path, error, remedy) from error
    if problem is not None:
        raise damaged(path, problem, remedy)


def read_whole(path: Path, info: FileInfo, remedy: str) -> bytes:
    """Reads a small file; raises `UserError` if it has changed."""
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise cannot_read(path, error, remedy) from error
    if info_of(contents) != info:
        raise damaged(path, "its sha256 has changed", remedy)
    return contents


def damaged(path: Path, problem: str, remedy: str) -> UserError:
    return UserError(f"{path} is damaged: {problem}; {remedy}")
