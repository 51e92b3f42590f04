"""Results of a study of frozen heads, read without jax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bottleneck.errors import UserError
from bottleneck.storage import json_files

RESULTS = "results.json"
DOCUMENTS = "documents.npz"  # sums of each loss over each document, for paired comparisons


def load_results(folder: Path) -> dict[str, Any]:
    """Returns the results of a finished study; raises `UserError` if the folder holds none."""
    path = folder / RESULTS
    if not path.is_file():
        raise UserError(f"{folder} holds no finished study of frozen heads")
    record = json_files.read(path, "delete it, and `frozen_heads` makes it again")
    if not {"model", "d_model", "optimum_stopped", "cells"} <= record.keys():
        raise UserError(f"{path} is not what `frozen_heads` writes")
    return record
