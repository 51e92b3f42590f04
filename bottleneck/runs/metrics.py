"""The lines of metrics.jsonl: their format, and a reader that checks them.

A line is a JSON object: step, split, the numbers measured there, and a CRC-32 of the rest. A
resumed run repeats the steps since its last checkpoint; the last line of a (step, split) counts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bottleneck.errors import UserError
from bottleneck.runs.folder import metric_files
from bottleneck.storage import json_files
from bottleneck.storage.folders import cannot_read

_LARGEST = 2**63 - 1


def written(step: int, split: str, scalars: dict[str, float]) -> str:
    """Returns the line for the numbers measured at a step, with its line end."""
    return json_files.dumps({"step": step, "split": split, **scalars}) + "\n"


def read(workdir: Path) -> list[dict[str, Any]]:
    """Returns the contents of each line of a run's metrics, in the order of writing.

    A last line without its end was torn by a kill and is left out.
    Raises: `UserError` if a line is damaged, naming it and its file.
    """
    found = []
    paths = metric_files(workdir)
    for path in paths:
        try:
            *whole, torn = path.read_bytes().split(b"\n")
        except OSError as error:
            raise cannot_read(path, error) from error
        for number, line in enumerate([*whole, torn] if torn else whole, start=1):
            try:
                found.append(_row(line))
            except ValueError as error:
                if number > len(whole) and path == paths[-1]:
                    break
                raise UserError(
                    f"{path}, line {number} is damaged: {error}; restore the file from a copy, or "
                    "delete the line, which loses only that measurement"
                ) from error
    return found


def _row(line: bytes) -> dict[str, Any]:
    """Returns the contents of a line; `ValueError` if no run writes such a line."""
    row = json_files.loads(line)
    step, split = row.get("step"), row.get("split")
    if type(step) is not int or step < 0:
        raise ValueError(f"its step is {step!r:.40}")
    if not isinstance(split, str):
        raise ValueError(f"its split is {split!r:.40}")
    for name, value in row.items():
        is_number = type(value) is float or (type(value) is int and abs(value) <= _LARGEST)
        if name != "split" and not is_number:
            raise ValueError(f"its {name!r:.40} is no number")
    return row
