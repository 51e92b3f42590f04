"""What a study of frozen heads leaves in its folder, read back without jax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bottleneck.errors import UserError
from bottleneck.storage import json_files

RESULTS = "results.json"
DOCUMENTS = "documents.npz"  # what each document adds to each loss, for paired comparisons


def load_results(folder: Path) -> dict[str, Any]:
    """The results of a finished study; `UserError` where there is none."""
    path = folder / RESULTS
    if not path.is_file():
        raise UserError(f"{folder} holds no finished study of frozen heads")
    record = json_files.read(path, "delete it, and `frozen_heads` makes it anew")
    if not {"model", "d_model", "optimum_stopped", "cells"} <= record.keys():
        raise UserError(f"{path} is not what `frozen_heads` writes")
    return record
