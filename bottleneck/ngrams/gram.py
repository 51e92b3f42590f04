"""The Gram matrix G = WᵀW of n-gram rows, in blocks.

A column is alone if its rows have no other entry: it is an eigenvector of G, with its diagonal as
the eigenvalue. The other m columns are coupled and sorted by descending weight. Products of sparse
rows give G block by block, so G is never dense as a whole unless m is small.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse

from bottleneck.ngrams.rows import Rows
from bottleneck.terminal import Progress

_BLOCK_TERMS = 2**23  # of a sparse product made at a time, at most 100 MB
_BLOCK_COLUMNS = 64  # of a dense matrix multiplied at a time


@dataclass(frozen=True)
class Gram:
    """G = diag(diagonal) + branchingᵀ·branching over the coupled columns; and the columns alone."""

    alone: np.ndarray  # float64, their positive eigenvalues, descending
    columns: np.ndarray  # int [m], ids of the coupled columns, heaviest first
    diagonal: np.ndarray  # float64 [m], from rows with one next token
    branching: scipy.sparse.csr_array  # float64 [rows, m]

    @classmethod
    def of(cls, rows: Rows) -> Gram:
        branching = rows.branching
        is_coupled = np.zeros(branching.shape[1], bool)
        is_coupled[branching.indices] = True
        energy = np.where(is_coupled, rows.squares, -1.0)
        columns = np.argsort(-energy, kind="stable")[: int(is_coupled.sum())]
        place = np.full(len(energy), -1, branching.indices.dtype)
        place[columns] = np.arange(len(columns))
        permuted = scipy.sparse.csr_array(
            (branching.data, place[branching.indices], branching.indptr),
            shape=(branching.shape[0], len(columns)),
        )
        alone = rows.diagonal[~is_coupled & (rows.diagonal > 0)]
        return cls(np.sort(alone)[::-1], columns, rows.diagonal[columns], permuted)

    @property
    def size(self) -> int:
        """m."""
        return len(self.columns)

    @property
    def trace(self) -> float:
        """‖W‖_F²."""
        squares = float(np.dot(self.branching.data, self.branching.data))
        return float(self.alone.sum() + self.diagonal.sum()) + squares

    def dense(self, k: int) -> np.ndarray:
        """Returns G over the k heaviest coupled columns: float64 [k, k], Fortran order."""
        heavy = self.branching[:, :k] if k < self.size else self.branching
        matrix = np.zeros((k, k), order="F")
        for start, stop, product in _products(heavy, heavy, f"WᵀW of {k:,} columns"):
            matrix[:, start:stop] = product.T.toarray()
        matrix[np.diag_indices(k)] += self.diagonal[:k]
        return matrix

    def outside(self, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns three facts of each column beyond the k heaviest, each float64 [m − k].

        They are its diagonal, the norm of its entries in the k heaviest rows, and the sum of the
        magnitudes of its other entries. The largest such sum bounds that block's eigenvalues.
        """
        own, norms, sums = np.zeros((3, self.size - k))
        what = f"WᵀW of {self.size - k:,} light columns"
        for start, stop, product in _products(self.branching[:, k:], self.branching, what):
            into_heavy = product[:, :k]
            norms[start:stop] = np.sqrt(into_heavy.power(2).sum(axis=1))
            sums[start:stop] = abs(product).sum(axis=1) - abs(into_heavy).sum(axis=1)
            rows = np.arange(start, stop)
            own[start:stop] = product[rows - start, rows + k]
        return own + self.diagonal[k:], norms, sums + self.diagonal[k:]

    def times(self, vectors_mxp: np.ndarray) -> np.ndarray:
        """Returns G·vectors, float64 [m, p], Fortran order; some columns at a time."""
        product = np.empty(vectors_mxp.shape, order="F")
        transposed = self.branching.T
        for start in range(0, vectors_mxp.shape[1], _BLOCK_COLUMNS):
            some = np.ascontiguousarray(vectors_mxp[:, start : start + _BLOCK_COLUMNS])
            of_rows = transposed @ (self.branching @ some)
            product[:, start : start + _BLOCK_COLUMNS] = of_rows + self.diagonal[:, None] * some
        return product


def _products(
    left: scipy.sparse.csr_array, right: scipy.sparse.csr_array, what: str
) -> Iterator[tuple[int, int, scipy.sparse.csr_array]]:
    """Yields rows start … stop − 1 of leftᵀ·right, sparse, piece by piece."""
    # A row of the product has as many terms as the rows of W with that column have entries.
    lengths = np.diff(right.indptr).astype(np.float64)
    indicator = scipy.sparse.csr_array(
        (np.ones(left.nnz, np.int8), left.indices, left.indptr), shape=left.shape
    )
    terms = np.cumsum(np.minimum(indicator.T @ lengths, right.shape[1]))
    transposed = left.T.tocsr()
    start = 0
    with Progress(what, left.shape[1]) as progress:
        while start < left.shape[1]:
            done = terms[start - 1] if start else 0.0
            stop = int(np.searchsorted(terms, done + _BLOCK_TERMS, side="right"))
            stop = min(max(stop, start + 1), left.shape[1])
            yield start, stop, transposed[start:stop] @ right
            start = stop
            progress.show(stop)
