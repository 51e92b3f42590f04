"""Runs tasks of the LM Evaluation Harness on a run, and stores their metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer

from bottleneck.data import tokenizer as tokenization
from bottleneck.data.tokens import prepare
from bottleneck.errors import UserError
from bottleneck.pretrained.imported_run import TOKENIZER, TOKENIZER_CONFIG
from bottleneck.pretrained.lm_eval import HarnessModel, ends_of_text
from bottleneck.pretrained.scoring import Scorer
from bottleneck.runs.reading import Run

EVALUATION = "evaluation.jsonl"

Row = dict[str, Any]  # step, task, shots, limit, harness; the task's metrics and their _stderr


def evaluate(
    run: Run,
    steps: list[int],
    tasks: list[str],
    *,
    limit: int | None = None,
    batch_size: int = 16,
    include: Path | None = None,
) -> list[Row]:
    """Returns the metrics of each task at each step; a task sets its own number of shots.

    Args:
        steps: of checkpoints; an empty list takes the last.
        limit: uses only the first examples of each task; None uses all.
        batch_size: sequences per forward pass.
        include: a folder with your own tasks, in YAML.
    Raises:
        UserError: if a task is unknown, its data cannot be loaded, or a step has no checkpoint.
    """
    steps = steps or run.steps[-1:]
    if missing := sorted(set(steps or [0]) - set(run.steps)):
        saved = ", ".join(map(str, run.steps)) or "none"
        raise UserError(f"{run.path} has no checkpoint of step {missing[0]}; it has {saved}")
    manager = TaskManager(include_path=None if include is None else str(include))
    unknown = [name for name in tasks if not manager.match_tasks([name])]
    if unknown:
        raise UserError(f"the harness has no task {unknown[0]}; lm_eval ls tasks lists them")
    try:
        manager.load(tasks)
    except Exception as error:  # of any library: no network, no such data set, a missing file
        reason = " ".join(str(error).split())
        raise UserError(f"the data of {', '.join(tasks)} cannot be loaded: {reason}") from error
    tokenizer = tokenizer_of(run)
    begin, end = ends_of_text(tokenizer, run.path / TOKENIZER_CONFIG)
    rows = []
    for step in steps:
        model, compute = run.config.model, run.config.compute
        scorer = Scorer(model, run.params(step), compute=compute, batch_size=batch_size)
        harness_model = HarnessModel(scorer, tokenizer, begins_with=begin, ends_with=end)
        results = lm_eval.simple_evaluate(
            harness_model, tasks=tasks, limit=limit, task_manager=manager, log_samples=False
        )
        rows += [_row(step, limit, task, results) for task in results["results"]]
    return rows


def tokenizer_of(run: Run) -> Tokenizer:
    """Returns the tokenizer of an imported model, or that of a run's corpus."""
    if (run.path / TOKENIZER).is_file():
        return tokenization.load(run.path / TOKENIZER)
    if run.trained_on is None:
        raise UserError(f"{run.path} has no {TOKENIZER}; copy that of the model there")
    return prepare(run.config.data).tokenizer()


def _row(step: int, limit: int | None, task: str, results: dict[str, Any]) -> Row:
    metrics = {
        name.removesuffix(",none"): value
        for name, value in results["results"][task].items()
        if isinstance(value, float)
    }
    return {
        "step": step,
        "task": task,
        "shots": results["n-shot"].get(task),
        "limit": limit,
        "harness": lm_eval.__version__,
        **metrics,
    }


def append(path: Path, rows: list[Row]) -> None:
    """Appends rows to a file, one JSON object per line; the last line of a (step, task) counts."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; choose another file with --output"
        ) from error
