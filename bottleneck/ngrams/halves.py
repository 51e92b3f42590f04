"""W-error without chance: directions are found in one half of the windows, measured in the other.

Singular vectors fit the noise of the counts that they are taken from, and the noise itself has a
norm. So every window falls into one of two halves, by a coin; half A gives the directions, half B
an unbiased estimate of how much of the true probabilities' norm these hold. By Ky Fan no directions
hold more than the singular vectors of the true rows do: the curve errs upwards only, on average.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.linalg

from bottleneck.errors import UserError
from bottleneck.ngrams.counts import TABLE, Table, mapped, write_at
from bottleneck.ngrams.gram import Gram
from bottleneck.ngrams.rows import Estimate, Rows, rows

_BLOCK_PAIRS = 2**21  # read at a time
_MOST_AXES = 4096  # that are rotated into singular vectors; the lighter tokens stay as they are


@dataclass(frozen=True)
class Halves:
    """W-error at d = 0, 1, … of half B, along what half A says; may leave [0, 1] by chance."""

    w_error: np.ndarray  # float64 [columns of A + 1], along the singular vectors of A
    null: np.ndarray  # float64 [columns of A + 1], along the axes of A's heaviest tokens
    n_contexts: int  # of half B with two windows or more, from which the norms are estimated


def check_comparable(estimate: Estimate) -> None:
    """Raises `UserError` where halves cannot be compared under an estimate."""
    if estimate.space != "probability" or estimate.smoothing:
        raise UserError("split halves are compared in the probability space, without smoothing")


def compare_halves(
    table: Table, estimate: Estimate, folder: Path, *, memory: float = 4e9
) -> Halves:
    """The W-error of half B along the directions of half A.

    Args:
        estimate: in the probability space and without smoothing, which would bias the norms.
        folder: where the two halves are kept while they are needed.
        memory: bytes for dense matrices.
    Raises:
        UserError: for other estimates, and where no context has two windows in half B.
    """
    check_comparable(estimate)
    half_a, half_b = _halves(table, estimate.seed, folder)
    rows_a = rows(half_a, estimate, folder=folder / "a", memory=memory / 4)
    repeated = dataclasses.replace(estimate, min_count=max(estimate.min_count, 2), contexts=None)
    rows_b = rows(half_b, repeated, folder=folder / "b", memory=memory / 4, without_chance=True)
    gram_a = Gram.of(rows_a)
    p = min(gram_a.size, _MOST_AXES, int(np.sqrt(memory / 40)))
    theta, vectors = scipy.linalg.eigh(gram_a.dense(p), overwrite_a=True, check_finite=False)
    axes = _axes(rows_a)
    columns = gram_a.columns[:p]
    others = axes[~np.isin(axes, columns)]
    own = rows_b.squares
    held = np.concatenate([_held(rows_b, columns, vectors), own[others]])
    order = np.argsort(-np.concatenate([theta, rows_a.squares[others]]), kind="stable")
    norm = float(own.sum())
    if not norm > 0:
        raise UserError("no two windows of a context agree in half B; split halves need more text")
    return Halves(
        _w_error(held[order], norm), _w_error(own[axes], norm), n_contexts=rows_b.n_contexts
    )


def _halves(table: Table, seed: int, folder: Path) -> tuple[Table, Table]:
    """The windows of a table, dealt out by a coin each."""
    rng = np.random.default_rng([seed, 2])
    names = ("a", "b")
    sizes = {name: dict.fromkeys(TABLE, 0) for name in names}
    n_windows = dict.fromkeys(names, 0)
    for _, starts, tokens, counts in table.blocks(_BLOCK_PAIRS):
        in_a = rng.binomial(counts, 0.5).astype(counts.dtype)
        of_pair = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(tokens)))
        for name, part in zip(names, (in_a, counts - in_a), strict=True):
            (folder / name).mkdir(parents=True, exist_ok=True)
            there = part > 0
            begins = np.flatnonzero(np.diff(of_pair[there], prepend=-1))
            pieces = {
                "starts": begins + sizes[name]["tokens"],
                "tokens": tokens[there],
                "counts": part[there],
            }
            for key, values in pieces.items():
                path = folder / name / f"{key}.bin"
                write_at(path, sizes[name][key] * TABLE[key].itemsize, values.astype(TABLE[key]))
                sizes[name][key] += len(values)
            n_windows[name] += int(part.sum(dtype=np.int64))
    halves = [
        Table(
            **{key: mapped(folder / name / f"{key}.bin", dtype) for key, dtype in TABLE.items()},
            windows=table.windows,
            n_windows=n_windows[name],
        )
        for name in names
    ]
    if not all(half.n_contexts for half in halves):
        raise UserError(f"{table.n_windows} windows are too few to be split in halves")
    return halves[0], halves[1]


def _axes(of: Rows) -> np.ndarray:
    """The tokens that have an entry, those of the greatest squares first."""
    squares = of.squares
    return np.asarray(np.argsort(-squares, kind="stable")[: int(np.sum(squares > 0))])


def _held(of: Rows, columns: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """vᵀ·WᵀW·v for each of some vectors over some columns."""
    block = Gram(np.zeros(0), columns, of.diagonal[columns], of.branching[:, columns])
    return np.asarray(np.einsum("ij,ij->j", vectors, block.dense(len(columns)) @ vectors))


def _w_error(held: np.ndarray, norm: float) -> np.ndarray:
    left = 1 - np.concatenate([[0.0], np.cumsum(held)]) / norm
    return np.asarray(np.sqrt(np.maximum(left, 0.0)))
