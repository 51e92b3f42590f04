"""The rows of W [C, V]: an estimate for each context, from counts.

Most rows have a single next token. They add only their squares to WᵀW, so these are summed by
column. The other rows branch and make a sparse matrix. N: windows of a context, c of them with a
next token w; p_w: share of w among the next tokens of all rows; α: smoothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import scipy.sparse

from bottleneck.errors import UserError
from bottleneck.ngrams.counts import Table

_BLOCK_ENTRIES = 2**21  # squared at a time
_ENTRY_BYTES = 12  # of the sparse matrix: a float64 and an int32


@dataclass(frozen=True)
class Estimate:
    """The definition of an entry of W, and the choice of rows.

    α pseudo-counts, spread as p_w, give the smoothed probability P = (c + α·p_w)/(N + α).
    An unseen token has P₀ = α·p_w/(N + α).

    - probability: P − P₀ = c/(N + α)
    - log: log(P/P₀) = log(1 + c/(α·p_w)), for α > 0
    - pmi: log(P/p_w) if positive, otherwise 0

    Subtracting P₀ changes the rank by 1, log P₀ by 2, so it moves a curve by as many dimensions.
    """

    space: Literal["probability", "log", "pmi"] = "probability"
    # "frequency": rows times √N, so windows weigh the same
    weighting: Literal["equal", "frequency"] = "equal"
    smoothing: float = 0.0  # α
    min_count: int = 1  # leaves out contexts with fewer windows
    contexts: int | None = None  # number of contexts to draw; None: all
    seed: int = 0  # of the draw. For one seed, a larger draw contains a smaller one.

    def __post_init__(self) -> None:
        if not self.smoothing >= 0:
            raise UserError(f"smoothing={self.smoothing} is not allowed; it must be at least 0")
        if self.space == "log" and not self.smoothing:
            raise UserError("the log space needs a smoothing above 0: unseen tokens have no log")
        if self.min_count < 1:
            raise UserError(f"min_count={self.min_count} is not allowed; it must be at least 1")
        if self.contexts is not None and self.contexts < 1:
            raise UserError(f"a draw of {self.contexts} contexts is not allowed; take at least 1")

    def entries(self, c: np.ndarray, total: np.ndarray, p: np.ndarray) -> np.ndarray:
        """Returns the entries of W before weighting; arguments have one item per pair."""
        if self.space == "probability":
            return c / (total + self.smoothing)
        if self.space == "log":
            return np.log1p(c / (self.smoothing * p))
        smoothed = (c + self.smoothing * p) / (total + self.smoothing)
        return np.maximum(np.log(smoothed / p), 0.0)


@dataclass(frozen=True)
class Rows:
    """W up to a rotation of its rows: WᵀW = diag(diagonal) + branchingᵀ·branching."""

    diagonal: np.ndarray  # float64 [V], squares of rows with one next token
    branching: scipy.sparse.csr_array  # float64 [other rows, V]
    unigram: np.ndarray  # int64 [V], windows of these contexts by next token
    n_contexts: int  # C

    @property
    def squares(self) -> np.ndarray:
        """The diagonal of WᵀW, float64 [V].

        It is also the spectrum of the null, in which every entry of W has a row of its own. By
        Schur and Horn, W-error is at most that of the null.
        """
        total = self.diagonal.copy()
        for start in range(0, self.branching.nnz, _BLOCK_ENTRIES):
            some = slice(start, start + _BLOCK_ENTRIES)
            data = self.branching.data[some]
            total += np.bincount(self.branching.indices[some], data * data, len(total))
        return total


def rows(
    table: Table, estimate: Estimate, *, folder: Path, memory: float = 1e9, unbiased: bool = False
) -> Rows:
    """Returns the rows of an estimate.

    Args:
        memory: bytes for the branching rows; larger ones go to files in the folder.
        unbiased: make WᵀW an unbiased estimate of its value for the true probabilities. Two tokens
            give c·c′/(N·(N − 1)), one token with itself c·(c − 1)/(N·(N − 1)). It needs the
            probability space and contexts with at least two windows.
    Raises: `UserError` if too few contexts have min_count windows.
    """
    assert not unbiased or (
        estimate.space == "probability" and not estimate.smoothing and estimate.min_count >= 2
    ), estimate
    kept = _kept(table, estimate)
    unigram, n_rows, n_pairs = _census(table, kept)
    if n_pairs * _ENTRY_BYTES > memory:
        data: np.ndarray = np.memmap(folder / "entries.bin", np.float64, "w+", shape=n_pairs)
        columns: np.ndarray = np.memmap(folder / "columns.bin", np.int32, "w+", shape=n_pairs)
    else:
        data, columns = np.empty(n_pairs), np.empty(n_pairs, np.int32)
    ends = np.zeros(n_rows + 1, np.int64)
    vocab_size = table.windows.vocab_size
    diagonal = np.zeros(vocab_size)
    p_V = unigram / unigram.sum()
    row = pair = 0
    for first, starts, tokens, counts in table.blocks():
        wanted = kept[first : first + len(starts)]
        lengths = np.diff(starts, append=len(tokens))
        totals = np.add.reduceat(counts, starts, dtype=np.int64)
        in_row = np.repeat(wanted, lengths)
        w, c = tokens[in_row], counts[in_row].astype(np.float64)
        total, length = (np.repeat(x[wanted], lengths[wanted]) for x in (totals, lengths))
        weight = total if estimate.weighting == "frequency" else np.ones(len(total))
        entries = np.sqrt(weight) * estimate.entries(c, total, p_V[w])
        if unbiased:
            entries *= np.sqrt(total / (total - 1))
            diagonal -= np.bincount(w, entries**2 / c, vocab_size)
        alone = length == 1
        diagonal += np.bincount(w[alone], entries[alone] ** 2, vocab_size)
        branches = lengths[wanted & (lengths > 1)]
        stop = pair + int(branches.sum())
        data[pair:stop], columns[pair:stop] = entries[~alone], w[~alone]
        ends[row + 1 : row + 1 + len(branches)] = pair + np.cumsum(branches)
        row, pair = row + len(branches), stop
    assert (row, pair) == (n_rows, n_pairs), (row, pair, n_rows, n_pairs)
    # scipy wants one type for both index arrays.
    if n_pairs < 2**31:
        ends = ends.astype(np.int32)
    else:
        columns = columns.astype(np.int64)
    branching = scipy.sparse.csr_array((data, columns, ends), shape=(n_rows, vocab_size))
    return Rows(diagonal, branching, unigram, int(kept.sum()))


def _kept(table: Table, estimate: Estimate) -> np.ndarray:
    """Returns True for each context that is a row: bool [contexts of the table]."""
    kept = np.ones(table.n_contexts, bool)
    if estimate.min_count > 1:
        for first, starts, _, counts in table.blocks():
            totals = np.add.reduceat(counts, starts, dtype=np.int64)
            kept[first : first + len(starts)] = totals >= estimate.min_count
    n_kept = int(kept.sum())
    if not n_kept:
        raise UserError(
            f"no {table.windows.n - 1}-token context occurs {estimate.min_count} times or more; "
            "take a smaller min_count"
        )
    if estimate.contexts is None:
        return kept
    if estimate.contexts > n_kept:
        raise UserError(
            f"{estimate.contexts:,} contexts cannot be drawn from the {n_kept:,} that exist; "
            "take fewer"
        )
    order = np.random.default_rng(estimate.seed).permutation(np.flatnonzero(kept))
    kept[order[estimate.contexts :]] = False
    return kept


def _census(table: Table, kept: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Returns the kept contexts' next tokens, int64 [V], and their branching rows and pairs."""
    unigram = np.zeros(table.windows.vocab_size, np.int64)
    n_rows = n_pairs = 0
    for first, starts, tokens, counts in table.blocks():
        wanted = kept[first : first + len(starts)]
        lengths = np.diff(starts, append=len(tokens))
        in_row = np.repeat(wanted, lengths)
        found = np.bincount(tokens[in_row], counts[in_row], len(unigram))
        unigram += found.astype(np.int64)  # float64 sums of integers below 2**53 are exact
        branches = lengths[wanted & (lengths > 1)]
        n_rows, n_pairs = n_rows + len(branches), n_pairs + int(branches.sum())
    return unigram, n_rows, n_pairs
