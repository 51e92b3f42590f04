"""JSON that tells by itself whether it is what was written: its last key is a CRC-32 of the rest.

A flipped bit inside a number leaves valid JSON, which would be believed. The CRC-32 is that of the
UTF-8 text as it would stand without the last key, and finds whatever a damaged byte, or any four in
a row, does to it. JSON without the key, which a person has edited, is taken as it is.
"""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any

from bottleneck.errors import UserError
from bottleneck.storage.folders import write_whole

_KEY = "crc32"
_SEAL = re.compile(rb',\s*"crc32": "([0-9a-f]{8})"(\s*\}\s*)\Z')


def dumps(record: dict[str, Any], *, indent: int | None = None) -> str:
    """A JSON object that is not empty, with its seal, on one line or indented."""
    plain = json.dumps(record, indent=indent)
    body = plain[:-1].rstrip()
    gap = " " if indent is None else "\n" + " " * indent
    return f'{body},{gap}"{_KEY}": "{zlib.crc32(plain.encode()):08x}"{plain[len(body) :]}'


def loads(content: bytes) -> dict[str, Any]:
    """The object, without its seal.

    Raises: `ValueError`, in one line, where it is no JSON object, or not the one that was written.
    """
    found = _SEAL.search(content)
    if found is not None:
        rest = content[: found.start()] + found[2].rstrip()
        if zlib.crc32(rest) != int(found[1], 16):
            raise ValueError(
                "its checksum does not fit its contents (if you changed it, delete its crc32)"
            )
    try:
        record = json.loads(content.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(record, dict):
        raise ValueError("it is no JSON object")
    if record.pop(_KEY, None) is not None and found is None:
        raise ValueError("its checksum is not as one is written")
    return record


def write(path: Path, record: dict[str, Any]) -> None:
    """Writes a file of one indented, sealed object that is there whole or not at all."""
    write_whole(path, (dumps(record, indent=2) + "\n").encode())


def read(path: Path, remedy: str) -> dict[str, Any]:
    """The object in a file.

    Args:
        remedy: what the user can do where it is damaged: "make it anew with …".
    Raises: `UserError` where the file is missing, cannot be read, or is not what was written.
    """
    try:
        return loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; {remedy}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; {remedy}") from error
