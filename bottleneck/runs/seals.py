"""Digests of a checkpoint's files, by which damage is found before anything is made of them.

A seal lies in the folder of each item of a checkpoint (`params`, `opt_state`, `meta`), written
before orbax gives the checkpoint its name: what has a name has its seals. Of files in a bucket,
which keeps checksums itself, a seal has the sizes alone. Checkpoints of older versions have none.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bottleneck.storage import json_files
from bottleneck.storage.folders import is_inside, is_remote, size

SEAL = "seal.json"

_AT_ONCE = 8  # files; a hash runs without the interpreter's lock


def seal(item: Path) -> None:
    """Writes down what is in the folder of an item."""
    files = sorted(path for path in _files(item) if path.name != SEAL)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        facts = list(pool.map(_facts, files))
    contents = {str(p.relative_to(item)): fact for p, fact in zip(files, facts, strict=True)}
    json_files.write(item / SEAL, {"files": contents})


def damage(item: Path, part: int = 0, parts: int = 1) -> str | None:
    """What is wrong with an item, naming the file; None where nothing is.

    Args:
        part: of so many `parts`, each of which reads some of the files.
    """
    if not (item / SEAL).exists():
        # Whether it had one cannot be told, but what orbax writes of every item is here.
        return None if item.is_dir() and any(item.iterdir()) else f"{item} is missing"
    try:
        files = json_files.loads((item / SEAL).read_bytes())["files"]
        facts = {str(name): (int(fact["bytes"]), fact["sha256"]) for name, fact in files.items()}
    except (ValueError, TypeError, LookupError, AttributeError, OSError) as error:
        return f"{item / SEAL} cannot be read: {error}"
    # A checkpoint may come from a stranger, and a seal that agrees with itself is soon made.
    if outside := sorted(name for name in facts if not is_inside(name)):
        return f"{item / SEAL} names {outside[0]!r}, which is not in its folder"
    names = sorted(facts)[part::parts]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        problems = pool.map(lambda name: _changed(item / name, *facts[name]), names)
        return next((problem for problem in problems if problem is not None), None)


def _changed(path: Path, n_bytes: int, sha256: str | None) -> str | None:
    if not path.exists():
        return f"{path} is missing"
    try:
        found = _facts(path)
    except OSError as error:
        return f"cannot read {path}: {error.strerror or error}"
    if found["bytes"] != n_bytes:
        return f"{path} has {found['bytes']:,} bytes instead of {n_bytes:,}"
    # One of the two is not known of what was copied to a bucket, or from there.
    if None not in (sha256, found["sha256"]) and sha256 != found["sha256"]:
        return f"{path} has other contents than were written"
    return None


def _facts(path: Path) -> dict[str, Any]:
    if is_remote(path):
        return {"bytes": size(path), "sha256": None}
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": digest}


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        yield from _files(path) if path.is_dir() else (path,)
