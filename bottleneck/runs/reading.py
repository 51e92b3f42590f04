"""Runs read from their folders: config, metrics, probes and saved parameters.

Only `Run.params` imports jax and orbax. R: rank of the head; D: hidden width.
"""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import polars.selectors as cs

from bottleneck.config import Config, parse
from bottleneck.errors import UserError
from bottleneck.runs import metrics as metric_lines
from bottleneck.runs.folder import CONFIG, PROBE, is_complete, numbered, read_config, saved_steps
from bottleneck.runs.probe import Probe
from bottleneck.runs.seals import damage
from bottleneck.sections import flatten
from bottleneck.storage.folders import absolute, as_path


@dataclass(frozen=True)
class CorpusFacts:
    """Counts of a run's corpus, made when it was tokenised."""

    digest: str  # the same for the same tokens
    train_tokens: int
    validation_tokens: int
    unigram_entropy: float  # nats per token
    bytes_per_token: float


@dataclass(frozen=True)
class Run:
    """One run folder as it was when `load` read it."""

    path: Path
    name: str  # the folder's name, or enough of its path to be unique
    config: Config
    metrics: pl.DataFrame  # one row per (step, split), ascending; null where not measured
    n_params: int  # N, total
    n_params_non_embedding: int
    trained_on: CorpusFacts | None = None  # None: imported weights; a series: what it is read on
    versions: dict[str, str] = field(default_factory=dict)
    mesh: dict[str, int] = field(default_factory=dict)
    git_revision: str | None = None
    series_of: str | None = None  # source of the checkpoints, for a series that others trained

    @property
    def corpus(self) -> CorpusFacts:
        """Counts of the training corpus; `UserError` for imported weights."""
        if self.trained_on is None:
            raise UserError(f"{self.path} was imported; its training corpus is unknown")
        return self.trained_on

    @property
    def is_complete(self) -> bool:
        return is_complete(self.path)

    @property
    def head_rank(self) -> int:
        """R; D for a full head."""
        return self.config.model.head_rank or self.config.model.d_model

    @property
    def is_full_rank(self) -> bool:
        return self.head_rank == self.config.model.d_model

    @property
    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending."""
        return saved_steps(self.path / "checkpoints")

    @property
    def probe_steps(self) -> list[int]:
        """Steps with a probe, ascending."""
        return numbered(self.path / "probes", PROBE)

    def split(self, name: str) -> pl.DataFrame:
        """Returns the rows of a split ("train", "eval", "probe", "time") and its own columns."""
        rows = self.metrics.filter(pl.col("split") == name)
        return rows.select([c for c in rows.columns if rows[c].null_count() < max(rows.height, 1)])

    def series(self, split: str, *columns: str) -> list[np.ndarray]:
        """Returns columns of a split as float64 arrays of one length; empty if one is missing."""
        rows = self.split(split)
        if not set(columns) <= set(rows.columns):
            return [np.empty(0) for _ in columns]
        rows = rows.drop_nulls(columns)
        return [rows[column].cast(pl.Float64).to_numpy() for column in columns]

    def probe(self, step: int | None = None) -> Probe:
        """Returns the probe of a step (None: the last); `UserError` if missing or damaged."""
        step = self._known(step, self.probe_steps, "probe")
        return Probe.load(self.path / "probes" / PROBE.format(step))

    def params(self, step: int | None = None) -> dict[str, Any]:
        """Returns the parameters at a step (None: the last), from a checkpoint of any mesh.

        They are nested dicts of jax arrays, each whole on the first CPU device. jax starts every
        platform that it finds; JAX_PLATFORMS=cpu keeps it off a busy accelerator.
        Raises: `UserError` if the step has no checkpoint or it cannot be read.
        """
        step = self._known(step, self.steps, "checkpoint")
        problem = damage(self.path / "checkpoints" / str(step) / "params")
        if problem is not None:
            raise UserError(f"the checkpoint of step {step} is damaged: {problem}")
        try:
            from bottleneck.runs.checkpoints import read_params

            return read_params(absolute(self.path / "checkpoints"), step)
        except Exception as error:  # orbax raises what its layers do
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"{self.path}: the checkpoint of step {step} cannot be read: {reason}"
            ) from error

    def _known(self, step: int | None, known: list[int], what: str) -> int:
        if not known:
            raise UserError(f"{self.path} has no {what} yet")
        if step is not None and step not in known:
            steps = ", ".join(map(str, known))
            raise UserError(f"{self.path} has no {what} of step {step}; it has those of {steps}")
        return known[-1] if step is None else step


def load(workdir: str | os.PathLike[str]) -> Run:
    """Returns the run in a folder.

    Raises: `UserError` if it is not a run folder, is damaged, or has no metrics yet. Imported runs
        and series of checkpoints may lack metrics.
    """
    path = as_path(workdir)
    if not _is_run(path):
        raise UserError(f"{path} is not a run folder: it has no {CONFIG}")
    record = read_config(path)
    is_imported = "corpus" in record and record["corpus"] is None
    metrics = _read_metrics(path, may_be_empty=is_imported or "series" in record)
    try:
        return Run(
            path=path,
            name=absolute(path).name,
            config=parse(record["config"]),
            metrics=metrics,
            n_params=_checked(record["parameters"]["total"], int),
            n_params_non_embedding=_checked(record["parameters"]["non_embedding"], int),
            trained_on=None if is_imported else _corpus(record["corpus"]),
            versions={name: _checked(v, str) for name, v in record["versions"].items()},
            mesh={axis: _checked(n, int) for axis, n in record["mesh"].items()},
            git_revision=_checked(record["git_revision"], str | None),
            series_of=_checked(record.get("series"), str | None),
        )
    except (KeyError, TypeError, AttributeError, ValueError, UserError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{path / CONFIG} is not one that a run writes: {what}") from error


def find_runs(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Returns the run folders among paths, each once; a path is one or holds some."""
    found: dict[Path, Path] = {}  # resolved → as given
    for path in map(as_path, paths):
        if not path.is_dir():
            raise UserError(f"{path} is not a folder")
        inside = [path] if _is_run(path) else [p for p in sorted(path.iterdir()) if _is_run(p)]
        if not inside:
            raise UserError(f"{path} is neither a run folder nor a folder of run folders")
        found |= {absolute(p): p for p in inside if absolute(p) not in found}
    return list(found.values())


def load_all(paths: Iterable[str | os.PathLike[str]]) -> tuple[list[Run], list[str]]:
    """Returns the readable runs among paths, and for each other run the reason.

    Runs are ordered by width, rank and name; names are unique. A path is a run folder or a folder
    of them. Raises: `UserError` if no run can be read.
    """
    runs, problems = _readable(paths)
    return runs, [str(problem) for problem in problems]


class _NoMetrics(UserError):
    """A run that has nothing to show yet."""


def _readable(paths: Iterable[str | os.PathLike[str]]) -> tuple[list[Run], list[UserError]]:
    runs, problems = [], list[UserError]()
    for path in find_runs(paths):
        try:
            run = load(path)
            if run.metrics.is_empty():
                why = "was imported and has no metrics"
                raise _NoMetrics(f"{path} {why if run.series_of is None else 'has no metrics yet'}")
            runs.append(run)
        except UserError as error:
            problems.append(error)
    if not runs:
        raise problems[0]
    if len({run.name for run in runs}) < len(runs):
        places = [str(absolute(run.path)) for run in runs]
        common = os.path.commonpath(places)
        runs = [
            dataclasses.replace(run, name=os.path.relpath(place, common))
            for run, place in zip(runs, places, strict=True)
        ]
    runs.sort(key=lambda run: (run.config.model.d_model, run.head_rank, run.name))
    return runs, problems


def table(root: str | os.PathLike[str]) -> pl.DataFrame:
    """Returns the measurements of all runs in a folder: one row per run, split and step.

    The first columns are `run`, `is_complete`, `n_params`, `n_params_non_embedding`, `d_model` and
    `head_rank`. Next come the config fields in which the runs differ, by dotted name, and last the
    columns of `Run.metrics`; a missing value is null. Runs without metrics are left out.

        table(root).filter(pl.col("split") == "eval").group_by("run").last()

    has the last validation loss of each run.

    Raises: `UserError` if no run can be read, or one is damaged.
    """
    runs, problems = _readable([root])
    for problem in problems:
        if not isinstance(problem, _NoMetrics):
            raise problem
    configs = [flatten(run.config) for run in runs]
    differing = [key for key in configs[0] if len({config[key] for config in configs}) > 1]
    parts = []
    for run, config in zip(runs, configs, strict=True):
        described = {
            "run": run.name,
            "is_complete": run.is_complete,
            "n_params": run.n_params,
            "n_params_non_embedding": run.n_params_non_embedding,
            "d_model": run.config.model.d_model,
            "head_rank": run.head_rank,
        }
        for key in differing:
            value = config[key]
            described[key] = ", ".join(map(str, value)) if isinstance(value, tuple) else value
        columns = [pl.lit(value).alias(name) for name, value in described.items()]
        parts.append(run.metrics.sort("split", "step").select(*columns, pl.all()))
    return pl.concat(parts, how="diagonal_relaxed")


def _is_run(path: Path) -> bool:
    return (path / CONFIG).is_file()


def _corpus(record: dict[str, Any]) -> CorpusFacts:
    corpus = CorpusFacts(**record)
    for name, kind in typing.get_type_hints(CorpusFacts).items():
        _checked(getattr(corpus, name), kind)
    return corpus


def _checked(value: Any, kind: Any) -> Any:
    """Returns the value; `ValueError` if it is of another kind."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"it has {value!r:.40} where {getattr(kind, '__name__', kind)} belongs")
    return value


def _read_metrics(workdir: Path, *, may_be_empty: bool) -> pl.DataFrame:
    """Returns one row per (step, split); a run that was killed and resumed repeats some."""
    rows = {(row["step"], row["split"]): row for row in metric_lines.read(workdir)}
    if not rows and may_be_empty:
        return pl.DataFrame(schema={"step": pl.Int64, "split": pl.String})
    if not rows:
        raise _NoMetrics(f"{workdir} has no metrics yet")
    # JSON does not distinguish 3.0 from 3, so counts are known by their names.
    measured = cs.numeric() - cs.by_name("step", "tokens", require_all=False)
    table = pl.DataFrame(list(rows.values()), infer_schema_length=None)
    return table.with_columns(measured.cast(pl.Float64)).sort("step", "split")
