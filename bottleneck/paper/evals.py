"""Published evaluations of a suite of checkpoints: metrics of each model at each of its steps.

Two layouts are read. One is a folder of result files of the LM Evaluation Harness, as in `evals/`
of EleutherAI/pythia (`…/pythia-160m/zero-shot/160m_step143000.json`). The other is a summary file
{"zero_shot": {model: [{"step": …, "lambada_openai/ppl": …}, …]}}.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bottleneck.errors import UserError
from bottleneck.laws.saturation import LossSeries

# Perplexities: the logarithm of one is a loss.
LOSSES = ("lambada_openai/ppl", "wikitext/word_perplexity")

Row = dict[str, float]


def read_evals(path: Path) -> dict[str, list[Row]]:
    """Returns model → its zero-shot rows by step; a row has "step" and metrics like "sciq/acc".

    If a folder has several evaluations of a step, the first file counts.

    Raises:
        UserError: no evaluations are found, or a file has the wrong form.
    """
    if not path.is_dir() and not path.is_file():
        raise UserError(f"{path} is neither a file nor a folder of evaluations")
    models: dict[str, dict[int, Row]] = {}
    for model, row in _rows_of_folder(path) if path.is_dir() else _rows_of_file(path):
        models.setdefault(model, {}).setdefault(int(row["step"]), row)
    if not models:
        raise UserError(
            f"{path} holds no zero-shot evaluations: no files like …/zero-shot/160m_step143000.json"
        )
    return {model: [rows[step] for step in sorted(rows)] for model, rows in sorted(models.items())}


def loss_series(model: str, rows: list[Row], metric: str = LOSSES[0]) -> LossSeries:
    """Returns log perplexity over a model's steps; `UserError` if it lacks the metric."""
    kept = [row for row in rows if metric in row]
    if not kept:
        raise UserError(f"the evaluations of {model} have no {metric}")
    for row in kept:
        if not (isinstance(row[metric], (int, float)) and 0 < row[metric] < math.inf):
            raise UserError(
                f"the evaluations of {model} have {metric}={row[metric]!r:.40} at step "
                f"{row['step']:.0f}, which is not a perplexity"
            )
    steps = np.array([int(row["step"]) for row in kept])
    return LossSeries(model, steps, np.log([float(row[metric]) for row in kept]))


def _rows_of_file(path: Path) -> Iterator[tuple[str, Row]]:
    models = _load(path).get("zero_shot")
    if not isinstance(models, dict):
        raise UserError(f"{path} has no zero_shot, so it is not a summary of evaluations")
    for model, rows in models.items():
        for row in rows if isinstance(rows, list) else [rows]:
            if not isinstance(row, dict) or "step" not in row:
                raise UserError(f"{path}: a row of {model} has no step")
            step = row["step"]
            if type(step) not in (int, float) or not 0 <= step < 2**53:  # a bool is an int
                raise UserError(f"{path}: a row of {model} has the step {step!r:.40}")
            yield model, row


def _rows_of_folder(folder: Path) -> Iterator[tuple[str, Row]]:
    for path in sorted(folder.rglob("*step*.json")):
        shots = [part for part in path.parts if re.fullmatch("(zero|five)[-_]shot", part)]
        step = re.search(r"step([0-9]{1,15})\.json$", path.name)
        if step is None or (shots and shots[-1].startswith("five")):
            continue
        results = _load(path).get("results")
        if not isinstance(results, dict):
            raise UserError(
                f"{path} has no results, so it is not a file of the LM Evaluation Harness"
            )
        where = path.parent.parent if shots else path.parent
        model = where.relative_to(folder).as_posix() if where != folder else folder.name
        row: Row = {"step": int(step[1])}
        for task, metrics in results.items():
            if not isinstance(metrics, dict):
                raise UserError(f"{path}: the results of {task} are not metrics")
            row |= {f"{task}/{name}": value for name, value in metrics.items()}
        yield model, row


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    return content if isinstance(content, dict) else {}
