"""W-error without the noise of counts, from two halves of the windows.

Singular vectors fit the noise of their counts, and the noise adds to the norm. So a coin puts each
window in half A or B. A gives directions, B an unbiased estimate of the true probabilities' norm
along them. By Ky Fan, no directions hold more of it than the true singular vectors. So on average
the curve errs upwards only.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.linalg

from bottleneck.errors import UserError
from bottleneck.ngrams.counts import TABLE, Table, write_at
from bottleneck.ngrams.gram import Gram
from bottleneck.ngrams.rows import Estimate, rows

_MOST_AXES = 4096  # rotated into singular vectors; lighter tokens keep their axes


@dataclass(frozen=True)
class Halves:
    """W-error of half B along the singular vectors of half A at d = 0, 1, …; noise may pass 1."""

    w_error: np.ndarray  # float64 [columns of A + 1]
    n_contexts: int  # with at least two windows in half B, which the norms come from


def check_comparable(estimate: Estimate) -> None:
    """Raises `UserError` if an estimate would bias the norms of the halves."""
    if estimate.space != "probability" or estimate.smoothing:
        raise UserError("split halves are compared in the probability space, without smoothing")


def compare_halves(
    table: Table, estimate: Estimate, folder: Path, *, memory: float = 4e9
) -> Halves:
    """Returns the W-error of half B along the directions of half A.

    Args:
        folder: for the counts of the halves.
        memory: bytes for dense matrices.
    Raises: `UserError` as `check_comparable` does, or if no context has two windows in half B.
    """
    check_comparable(estimate)
    half_a, half_b = _halves(table, estimate.seed, folder)
    rows_a = rows(half_a, estimate, folder=folder / "a", memory=memory / 4)
    repeated = dataclasses.replace(estimate, min_count=max(estimate.min_count, 2), contexts=None)
    rows_b = rows(half_b, repeated, folder=folder / "b", memory=memory / 4, unbiased=True)
    gram_a = Gram.of(rows_a)
    p = min(gram_a.size, _MOST_AXES, int(np.sqrt(memory / 40)))
    theta, vectors = scipy.linalg.eigh(gram_a.dense(p), overwrite_a=True, check_finite=False)
    squares_a, squares_b = rows_a.squares, rows_b.squares
    columns = gram_a.columns[:p]
    others = np.setdiff1d(np.flatnonzero(squares_a > 0), columns)
    block_b = Gram(np.zeros(0), columns, rows_b.diagonal[columns], rows_b.branching[:, columns])
    along = np.einsum("ij,ij->j", vectors, block_b.dense(p) @ vectors)  # vᵀ·WᵀW·v
    held = np.concatenate([along, squares_b[others]])
    order = np.argsort(-np.concatenate([theta, squares_a[others]]), kind="stable")
    norm = float(squares_b.sum())
    if not norm > 0:
        raise UserError("no two windows of a context agree in half B; split halves need more text")
    left = 1 - np.append(0.0, np.cumsum(held[order])) / norm
    return Halves(np.sqrt(np.maximum(left, 0.0)), rows_b.n_contexts)


def _halves(table: Table, seed: int, folder: Path) -> tuple[Table, Table]:
    """Returns two tables; a coin decides which one a window joins."""
    rng = np.random.default_rng([seed, 2])
    sizes = {name: dict.fromkeys(TABLE, 0) | {"windows": 0} for name in "ab"}
    for _, starts, tokens, counts in table.blocks():
        in_a = rng.binomial(counts, 0.5).astype(counts.dtype)
        of_pair = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(tokens)))
        for (name, size), part in zip(sizes.items(), (in_a, counts - in_a), strict=True):
            (folder / name).mkdir(parents=True, exist_ok=True)
            there = part > 0
            begins = np.flatnonzero(np.diff(of_pair[there], prepend=-1))
            columns = (begins + size["tokens"], tokens[there], part[there])
            for (key, dtype), values in zip(TABLE.items(), columns, strict=True):
                path = folder / name / f"{key}.bin"
                write_at(path, size[key] * dtype.itemsize, values.astype(dtype))
                size[key] += len(values)
            size["windows"] += int(part.sum(dtype=np.int64))
    a, b = (Table.stored(folder / k, table.windows, size["windows"]) for k, size in sizes.items())
    if not (a.n_contexts and b.n_contexts):
        raise UserError(f"{table.n_windows} windows are too few to split in halves")
    return a, b
