"""Digests of a checkpoint's files, which reveal damage before a checkpoint is used.

The folder of each item of a checkpoint (`params`, `opt_state`, `meta`) has a seal. It is written
before orbax gives the checkpoint its name, so every named checkpoint has its seals. A bucket keeps
checksums itself, so seals there list only sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bottleneck.storage import json_files
from bottleneck.storage.checksums import FileInfo, difference, infos_in, listed
from bottleneck.storage.folders import cannot_read

SEAL = "seal.json"

_AT_ONCE = 8  # files; hashing releases the interpreter's lock


def seal(item: Path) -> None:
    """Writes the seal of an item's folder."""
    names = sorted(str(path.relative_to(item)) for path in _files(item) if path.name != SEAL)
    json_files.write(item / SEAL, listed(item, names))


def damage(item: Path, part: int = 0, parts: int = 1) -> str | None:
    """Returns how an item is damaged, naming the file; None if it is intact.

    Each part, 0 to `parts` - 1, reads its share of the files.
    """
    if not (item / SEAL).exists():
        return f"{item / SEAL} is missing"
    try:
        infos = infos_in(json_files.loads((item / SEAL).read_bytes()))
    except (ValueError, OSError) as error:
        return f"{item / SEAL} cannot be read: {error}"
    names = sorted(infos)[part::parts]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        problems = pool.map(lambda name: _problem(item / name, infos[name]), names)
        return next((problem for problem in problems if problem is not None), None)


def _problem(path: Path, info: FileInfo) -> str | None:
    try:
        problem = difference(path, info)
    except OSError as error:
        return str(cannot_read(path, error))
    return problem and f"{path}: {problem}"


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        yield from _files(path) if path.is_dir() else (path,)
