"""The points that a scaling law is fitted to, from run folders or a table, and how N and C count.

N is "total" parameters, or "non_embedding": without the token and position tables and the head.
C, training FLOPs, is 6·T for each parameter of the layers ("without_head", usual with non-embedding
N), of layers and head ("with_head"), or of all ("total", usual with total N, although an embedding
takes no product). T: training tokens; L: loss, nats per token; n: points.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from bottleneck.errors import UserError
from bottleneck.laws.forms import log_quantities
from bottleneck.model.accounting import count_parameters
from bottleneck.runs.reading import Run

N_CONVENTIONS = ("total", "non_embedding")
FLOP_CONVENTIONS = ("total", "with_head", "without_head")

_MOST_ROWS = 5000  # thousands of starts are tried at once, each with a residual for each point
# In the order of the checks: a table may give flops alone, and n_tokens then follows from them.
_COLUMNS = ("n_params", "flops", "n_tokens", "loss", "rank", "width")


@dataclass(frozen=True)
class Points:
    """A table of n points, checked once: float64 [n] each, finite and above 0.

    n_params: N, by one convention throughout.
    n_tokens: T, training tokens.
    loss: L, nats per token.
    rank, width: R and D of the head, for the forms that name them.
    flops: C, training FLOPs; 6·N·T if None.
    names: one for each point; row numbers from 0 if empty.
    note: how N and C are counted.

    Raises: `UserError` if columns differ in length or hold a number that is not allowed.
    """

    n_params: np.ndarray
    n_tokens: np.ndarray
    loss: np.ndarray
    rank: np.ndarray | None = None
    width: np.ndarray | None = None
    flops: np.ndarray = None  # type: ignore[assignment]  # an array from here on
    names: tuple[str, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        n = len(self.n_params)
        columns = {}
        for name in _COLUMNS:
            if getattr(self, name) is None:
                continue
            columns[name] = values = np.asarray(getattr(self, name), np.float64)
            if values.shape != (n,):
                raise UserError(f"{name} must be {n} numbers, one a point")
            bad = ~(np.isfinite(values) & (values > 0))
            if bad.any():
                what = f"{name} is {values[bad][0]:g} in row {int(np.argmax(bad)) + 1}"
                raise UserError(f"{what}; it must be a finite number above 0")
        columns.setdefault("flops", 6 * columns["n_params"] * columns["n_tokens"])
        for name, values in columns.items():
            object.__setattr__(self, name, values)
        object.__setattr__(self, "names", tuple(self.names or map(str, range(n))))

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def is_full(self) -> np.ndarray:
        """True for each head of full rank, and for all if ranks or widths are unknown: bool [n]."""
        if self.rank is None or self.width is None:
            return np.ones(len(self), bool)
        return self.rank == self.width

    def take(self, chosen: np.ndarray) -> Points:
        """Returns the points that a mask or indices choose."""
        columns = {name: getattr(self, name) for name in _COLUMNS}
        kept = {name: column[chosen] for name, column in columns.items() if column is not None}
        return replace(self, names=tuple(np.array(self.names)[chosen].tolist()), **kept)

    def log_quantities(self) -> dict[str, np.ndarray]:
        """Returns the logarithms that forms are made of; see `forms.log_quantities`."""
        return log_quantities(self.n_params, self.n_tokens, self.rank, self.width)


def from_runs(
    runs: Sequence[Run],
    n_convention: str = "total",
    flop_convention: str = "total",
    at_least_loss: bool = False,
) -> Points:
    """Returns a point for each finished run: its last validation loss and its training tokens.

    Args:
        n_convention, flop_convention: of `N_CONVENTIONS` and `FLOP_CONVENTIONS`.
        at_least_loss: take each run where its validation loss is least, not at its end.
    Raises: `UserError` if no run is finished, or if they were validated on different text.
    """
    rows, names, texts = [], [], set()
    for run in runs:
        tokens, losses = run.series("eval", "tokens", "loss")
        tokens, losses = tokens[tokens > 0], losses[tokens > 0]  # no law holds at T = 0
        if not (run.is_complete and len(tokens)):
            continue
        count = count_parameters(run.config.model)
        n_params = {"total": count.total, "non_embedding": count.non_embedding}[n_convention]
        layers, head = count.layers, count.head
        counted = {"total": count.total, "with_head": layers + head, "without_head": layers}
        i = int(np.argmin(losses)) if at_least_loss else -1
        shape = (run.head_rank, run.config.model.d_model)
        flops = 6 * counted[flop_convention] * tokens[i]
        rows.append((n_params, tokens[i], losses[i], *shape, flops))
        names.append(run.name)
        texts.add(run.corpus.digest)
    if not rows:
        raise UserError("no run is finished, so there is no final loss to fit a law to")
    if len(texts) > 1:
        raise UserError(
            "the runs were measured on different text, so no one law holds for their losses"
        )
    note = f"N: {n_convention} parameters; C: 6 × {flop_convention} parameters × T"
    n_params, n_tokens, loss, rank, width, flops = np.array(rows, np.float64).T
    return Points(n_params, n_tokens, loss, rank, width, flops, tuple(names), note)


def from_table(path: Path, columns: Mapping[str, str] | None = None) -> Points:
    """Returns the rows of a .csv, .tsv, .json or .jsonl file as points.

    The file needs columns n_params, n_tokens and loss; rank, width and flops are read if present.
    A file with flops may lack n_tokens, which then is C/6N. `columns` maps names of columns here to
    the file's own.

    Raises: `UserError` if the file or a column is missing, or a value is not a number above 0.
    """
    columns, table = columns or {}, _read(path)
    has = ", ".join(table.columns)
    for name, column in columns.items():
        if column not in table.columns:
            raise UserError(f"--columns {name}={column}: {path} has no such column; it has {has}")
    wanted = {name: columns.get(name, name) for name in _COLUMNS}
    present = {name: column for name, column in wanted.items() if column in table.columns}
    found: dict[str, Any] = {name: _numbers(table[c], path) for name, c in present.items()}
    note = "N: as the table counts it; C: " + ("the table's" if "flops" in found else "6·N·T")
    if "n_tokens" not in found and {"n_params", "flops"} <= found.keys():
        with np.errstate(divide="ignore", invalid="ignore"):  # Points says which row has N = 0
            found["n_tokens"] = found["flops"] / (6 * found["n_params"])
    for name in ("n_params", "n_tokens", "loss"):
        if name not in found:
            raise UserError(
                f"{path} has no column {wanted[name]}; it has {has} "
                "(name others with --columns n_params=… n_tokens=… loss=…)"
            )
    try:
        return Points(**found, note=note)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


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
    """Returns a column as float64; its range is for `Points` to check."""
    if column.null_count():
        row = int(np.argmax(column.is_null())) + 1
        raise UserError(f"{path}: column {column.name} is empty in row {row}")
    try:
        if column.dtype.is_nested():  # polars would cast a list to one value for each of its items
            raise pl.exceptions.InvalidOperationError(f"{column.dtype}")
        return column.cast(pl.Float64).to_numpy()
    except pl.exceptions.PolarsError as error:
        what = f"column {column.name} holds a value that is not a number"
        raise UserError(f"{path}: {what}") from error
