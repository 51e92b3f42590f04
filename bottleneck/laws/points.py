"""Where the points of a scaling law come from: run folders, or a table; how N and C are counted.

N: "total" parameters, or "non_embedding", without the tables of tokens and positions and without
the head. C, training FLOPs, is 6 a token for each parameter that is counted: "total", all, as is
usual with total N, though looking up an embedding takes no product; "with_head", those of layers
and head; "without_head", those of the layers alone, as is usual with non-embedding N.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from bottleneck.errors import UserError
from bottleneck.laws.scaling_law import Points
from bottleneck.model.accounting import count_parameters
from bottleneck.runs.reading import Run

N_CONVENTIONS = ("total", "non_embedding")
FLOP_CONVENTIONS = ("total", "with_head", "without_head")
Row = tuple[float, float, float, int, int]  # N, T, L, R, D

_MOST_ROWS = 5000  # thousands of starts are tried at once, each with a residual for each point
_COLUMNS = ("n_params", "n_tokens", "loss", "rank", "width", "flops")


@dataclass(frozen=True)
class Measured:
    """Points with their budgets C, float64 [n], and names; `note` says how N and C are counted.

    best: the same runs where their losses were least; None for a table.
    """

    points: Points
    flops: np.ndarray
    names: tuple[str, ...]
    note: str
    best: Points | None = None

    def take(self, chosen: np.ndarray) -> Measured:
        """Those of the points, by a mask."""
        names = tuple(name for name, is_kept in zip(self.names, chosen, strict=True) if is_kept)
        best = None if self.best is None else self.best.take(chosen)
        return Measured(self.points.take(chosen), self.flops[chosen], names, self.note, best)


def from_runs(
    runs: Sequence[Run], n_convention: str = "total", flop_convention: str = "total"
) -> Measured:
    """A point for each finished run: its last held-out loss, and the tokens it was trained on.

    Raises: `UserError` where no run is finished, or where they were not measured on the same text.
    """
    final: list[Row] = []
    best: list[Row] = []
    flops, names = [], []
    finished = [
        run
        for run in runs
        if run.is_complete and (run.series("eval", "tokens", "loss")[0] > 0).any()
    ]
    if not finished:
        raise UserError("no run is finished, so there is no final loss to fit a law to")
    if len({run.corpus.digest for run in finished}) > 1:
        raise UserError(
            "the runs were measured on different text, so no one law holds for their losses"
        )
    for run in finished:
        tokens, losses = run.series("eval", "tokens", "loss")
        tokens, losses = tokens[tokens > 0], losses[tokens > 0]  # T = 0 has no law
        model = run.config.model
        count = count_parameters(model)
        per_token = {
            "total": count.total,
            "with_head": count.layers + count.head,
            "without_head": count.layers,
        }[flop_convention]
        n_params = count.total if n_convention == "total" else count.non_embedding
        least = int(np.argmin(losses))
        for end, points in ((-1, final), (least, best)):
            points.append((n_params, tokens[end], losses[end], run.head_rank, model.d_model))
        flops.append(6 * per_token * tokens[-1])
        names.append(run.name)
    note = f"N: {n_convention} parameters; C: 6 × {flop_convention} parameters × T"
    return Measured(_points(final), np.array(flops), tuple(names), note, _points(best))


def _points(rows: list[Row]) -> Points:
    return Points(*(np.array(column, np.float64) for column in zip(*rows, strict=True)))


def from_table(path: Path, columns: Mapping[str, str] | None = None) -> Measured:
    """The rows of a .csv, .tsv, .json or .jsonl file with columns n_params, n_tokens and loss.

    Columns rank, width and flops are read where they are there. With flops a file may lack
    n_tokens, which then is C/6N; without them C is 6·N·T.

    Args:
        columns: what a column is called in the file, by the name that it has here.
    Raises: `UserError` where the file or a column is missing, or a value is no number above 0.
    """
    wanted = dict(zip(_COLUMNS, _COLUMNS, strict=True)) | dict(columns or {})
    table = _read(path)
    for name, column in (columns or {}).items():
        if column not in table.columns:
            has = ", ".join(table.columns)
            raise UserError(f"--columns {name}={column}: {path} has no such column; it has {has}")
    found = {
        name: _numbers(table[column], path)
        for name, column in wanted.items()
        if column in table.columns
    }
    if "n_tokens" not in found and {"n_params", "flops"} <= found.keys():
        found["n_tokens"] = found["flops"] / (6 * found["n_params"])
    missing = [wanted[name] for name in ("n_params", "n_tokens", "loss") if name not in found]
    if missing:
        raise UserError(
            f"{path} has no column {missing[0]}; it has {', '.join(table.columns)} "
            "(name others with --columns n_params=… n_tokens=… loss=…)"
        )
    flops = found.pop("flops", None)
    points = Points(**found)
    note = "N: as the table counts it; C: " + ("6·N·T" if flops is None else "the table's")
    if flops is None:
        flops = 6 * points.n_params * points.n_tokens
    return Measured(points, flops, tuple(str(i) for i in range(len(points))), note)


def _read(path: Path) -> pl.DataFrame:
    if not os.path.isfile(path):  # unlike a Path's, it takes a name of any length
        raise UserError(f"--table={path}: there is no such file")
    try:
        if path.suffix in (".csv", ".tsv"):
            separator = "," if path.suffix == ".csv" else "\t"
            table = pl.read_csv(path, separator=separator, infer_schema_length=None)
        elif path.suffix == ".jsonl":
            table = pl.read_ndjson(path)
        elif path.suffix == ".json":
            table = pl.DataFrame(json.loads(path.read_text(encoding="utf-8-sig")))
        else:
            raise UserError(f"--table={path}: its name must end in .csv, .tsv, .json or .jsonl")
    except (
        *(pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError),
        *(ValueError, TypeError, OverflowError, RecursionError),
    ) as error:
        reason, *_ = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"--table={path} cannot be read: {reason}") from error
    if not 0 < table.height <= _MOST_ROWS:
        rows = f"{table.height:,} rows; a law is fitted to at most {_MOST_ROWS:,} points"
        raise UserError(f"--table={path} has {rows if table.height else 'no rows'}")
    return table


def _numbers(column: pl.Series, path: Path) -> np.ndarray:
    try:
        if column.dtype.is_nested():  # which casts to one value for each row of rows
            raise pl.exceptions.InvalidOperationError(f"{column.dtype}")
        values = column.cast(pl.Float64).to_numpy()
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{path}: column {column.name} holds what is no number") from error
    bad = ~(np.isfinite(values) & (values > 0))
    if bad.any():
        row = int(np.argmax(bad))
        found = "empty" if column[row] is None else f"{values[row]:g}"
        what = "it must be a finite number above 0"
        raise UserError(f"{path}: column {column.name} is {found} in row {row + 1}; {what}")
    return values
