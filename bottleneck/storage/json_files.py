"""Sealed JSON: the last key is a CRC-32 of the rest, so damage is found.

A flipped bit inside a number leaves valid JSON. The CRC-32 is that of the UTF-8 text without the
last key, and finds any damage to up to four adjacent bytes. JSON without the key was edited by a
person, and is read without a check.
"""

import json
import re
import zlib
from pathlib import Path
from typing import Any

from bottleneck.errors import UserError
from bottleneck.storage.folders import cannot_read, write_whole

_KEY = "crc32"
_SEAL = re.compile(rb',\s*"crc32": "([0-9a-f]{8})"(\s*\}\s*)\Z')


def dumps(record: dict[str, Any], *, indent: int | None = None) -> str:
    """Serializes a non-empty JSON object with its seal, on one line or indented."""
    plain = json.dumps(record, indent=indent)
    body = plain[:-1].rstrip()
    gap = " " if indent is None else "\n" + " " * indent
    return f'{body},{gap}"{_KEY}": "{zlib.crc32(plain.encode()):08x}"{plain[len(body) :]}'


def loads(content: bytes) -> dict[str, Any]:
    """Parses an object without its seal; raises a one-line `ValueError` if it is damaged."""
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
        raise ValueError("it is not a JSON object")
    if record.pop(_KEY, None) is not None and found is None:
        raise ValueError("its checksum is malformed")
    return record


def write(path: Path, record: dict[str, Any]) -> None:
    """Writes a file of one indented, sealed object atomically."""
    write_whole(path, (dumps(record, indent=2) + "\n").encode())


def read(path: Path, remedy: str) -> dict[str, Any]:
    """Reads the object in a file; raises `UserError` with the remedy if missing or damaged."""
    try:
        return loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; {remedy}") from error
    except OSError as error:
        raise cannot_read(path, error, remedy) from error
