"""What a study of frozen heads leaves in its folder, read back without jax."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bottleneck.errors import UserError

RESULTS = "results.json"
DOCUMENTS = "documents.npz"  # what each document adds to each loss, for paired comparisons


def load_results(folder: Path) -> dict[str, Any]:
    """The results of a finished study; `UserError` where there is none."""
    path = folder / RESULTS
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{folder} holds no finished study of frozen heads") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    return record
