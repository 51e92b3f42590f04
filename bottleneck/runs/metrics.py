"""The lines of metrics.jsonl: how one is written, and how all are read and checked.

A line is a JSON object: step, split, the numbers measured there, and last a CRC-32 of the rest,
which lines of older versions lack. A run that was killed and continued repeats the steps since its
last checkpoint, with the same values; whoever reads them takes the last line of a (step, split).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bottleneck.errors import UserError
from bottleneck.runs.folder import metric_files
from bottleneck.storage import json_files

_LARGEST = 2**63 - 1


def written(step: int, split: str, scalars: dict[str, float]) -> str:
    """The line of what was measured at a step, with its line end."""
    return json_files.dumps({"step": step, "split": split, **scalars}) + "\n"


def read(workdir: Path) -> list[dict[str, Any]]:
    """What each line of a run's metrics holds, in the order in which they were written.

    A last line without its end is one that a kill tore, and is left out.

    Raises: `UserError` naming the file and the line where one is not what was written.
    """
    found = []
    paths = metric_files(workdir)
    for path in paths:
        try:
            *lines, torn = path.read_bytes().split(b"\n")
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        if torn and (path != paths[-1] or _is_line(torn)):
            lines.append(torn)
        for number, line in enumerate(lines, start=1):
            try:
                found.append(_row(line))
            except ValueError as error:
                raise UserError(
                    f"{path}, line {number} is damaged: {error}; restore the file from a copy, or "
                    "delete the line, which loses that measurement alone"
                ) from error
    return found


def _is_line(content: bytes) -> bool:
    try:
        _row(content)
    except ValueError:
        return False
    return True


def _row(line: bytes) -> dict[str, Any]:
    """What a line holds; `ValueError` where it is not one that a run writes."""
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
