"""The eigenvalues λ of an n-gram Gram matrix G: exact if it is small, otherwise bounded.

W-error(d) needs the sum of the d largest λ. For p orthonormal columns Q, the eigenvalues θ of QᵀGQ
bound this sum from below (Ky Fan). For the upper bound, let C be G on the orthogonal complement of
Q, B = QᵀG there, and μ > 0. For any T ≻ 0, [[0, B], [Bᵀ, 0]] ≼ diag(B·T⁻¹·Bᵀ, T), so

    Σ_{i≤d} λᵢ ≤ d·μ + tr(G − μ)₊ ≤ d·μ + Σᵢ(θᵢ − μ)₊ + tr(B·T⁻¹·Bᵀ) + tr(C + T − μ)₊.

If μ = θ_d, this exceeds the lower bound by a term of second order in B alone. Rows with one next
token make G nearly diagonal, so Q starts as the axes of the p heaviest tokens. If that is not
enough, block power steps follow, with random columns beside the axes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from bottleneck.errors import UserError
from bottleneck.ngrams.gram import Gram
from bottleneck.probes import spectral_metrics
from bottleneck.terminal import Progress

TOLERANCE = 1e-3  # of W-error, if the eigenvalues are not exact

_SVD_CELLS = 2**21  # of W, for LAPACK's SVD: a second or two
_EXACT_SIZE = 4096  # m, for exact eigenvalues by default: half a minute on two cores
_OVERSAMPLING = 1.25  # p over d
_RANDOM_COLUMNS = 32  # beside the axes
_MOST_STEPS = 6
_LEVELS = 2000  # values of μ to try
_LANCZOS_STEPS = 40
_ROUNDING = 1e-2  # of squared lengths; a second Cholesky corrects up to this
_NEGLIGIBLE = 1e-12  # of the trace


@dataclass(frozen=True)
class Eigenvalues:
    """The eigenvalues of G, with bounds on the sum of the d largest for d = 0, 1, …."""

    values: np.ndarray  # float64 [V′], descending, with V′ columns that have an entry
    low: np.ndarray  # float64 [V′ + 1], lower bounds
    high: np.ndarray  # float64 [V′ + 1], upper bounds
    trace: float
    method: str  # in words

    def w_error(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns upper and lower bounds of √(1 − Σ_{i≤d} λᵢ / Σλ): two float64 [V′ + 1]."""
        most, least = (np.sqrt(np.clip(1 - s / self.trace, 0, 1)) for s in (self.low, self.high))
        return most, least

    def uncertainty(self, d: int) -> float:
        """Returns the largest distance between the bounds of W-error at dimensions up to d."""
        most, least = self.w_error()
        return float(np.max((most - least)[: d + 1]))


def eigenvalues(
    gram: Gram, d: int, *, memory: float = 4e9, tolerance: float = TOLERANCE, exact: bool = False
) -> Eigenvalues:
    """Returns eigenvalues of G with W-error within the tolerance at each dimension up to d.

    Bounds are wider beyond d, or if the memory is too small for the tolerance.

    Args:
        memory: bytes for dense matrices.
        exact: find all eigenvalues by LAPACK, however long it takes.
    Raises: `UserError` if exact eigenvalues need more memory.
    """
    m = gram.size
    cells = (m + gram.branching.shape[0]) * m
    if cells <= _SVD_CELLS:  # with the accuracy of W and not of W²
        stacked = np.concatenate([np.diag(np.sqrt(gram.diagonal)), gram.branching.toarray()])
        values = np.linalg.svd(stacked, compute_uv=False) ** 2
        return _exact(gram, values, "singular values of W itself")
    needed = 8 * m * m
    if exact and needed > memory:
        raise UserError(
            f"exact eigenvalues of {m:,} coupled tokens need {needed / 1e9:.1f} GB of memory for "
            f"a dense matrix and {memory / 1e9:.1f} are allowed; give more, or leave out --exact"
        )
    if exact or (m <= _EXACT_SIZE and needed <= memory):
        return _by_axes(gram, m, np.inf, tolerance)
    return _by_axes(gram, d, memory, tolerance)


def w_error_of(mass: np.ndarray) -> np.ndarray:
    """Returns W-error at d = 0, 1, … of a diagonal Gram matrix: float64 [positive entries + 1]."""
    return np.append(1.0, spectral_metrics.w_error(np.sqrt(np.sort(mass[mass > 0])[::-1])))


def _exact(gram: Gram, coupled: np.ndarray, method: str) -> Eigenvalues:
    values = np.sort(np.concatenate([coupled, gram.alone]))[::-1]
    sums = _sums(values)
    return Eigenvalues(values, sums, sums, float(sums[-1]), method)


def _by_axes(gram: Gram, d: int, memory: float, tolerance: float) -> Eigenvalues:
    """Takes the axes of the heaviest columns, then power steps if those are not enough."""
    m = gram.size
    # Memory holds the projection and perhaps LAPACK's copy.
    p = int(min(m, np.sqrt(memory / 16), _OVERSAMPLING * d + _RANDOM_COLUMNS))
    theta = scipy.linalg.eigvalsh(gram.dense(p), overwrite_a=True, check_finite=False)[::-1]
    if p == m:
        return _exact(gram, np.maximum(theta, 0.0), f"all eigenvalues of WᵀW, {m:,} × {m:,}")
    own, norms, limits = gram.outside(p)

    def light(level: float) -> float:
        """Returns the minimum over diagonal T of tr(B·T⁻¹·Bᵀ) + tr(C + T − μ)₊.

        `limits` dominates C, so the minimum is found column by column.
        """
        room = level - limits
        inside = room >= norms
        near = norms[~inside]
        far = norms[inside] ** 2 / np.maximum(room[inside], np.finfo(float).tiny)
        return float(np.sum(far) + np.sum(2 * near - room[~inside]))

    values = np.sort(np.concatenate([theta, own, gram.alone]))[::-1]
    high = _upper(gram, values, np.concatenate([theta, gram.alone]), light)
    method = f"{p:,} heaviest of {m:,} coupled tokens"
    found = Eigenvalues(values, _sums(values), high, gram.trace, method)
    tall = 3 * 8 * m * p  # bytes of a block, its image, and the workspace of QR
    if found.uncertainty(d) <= tolerance or tall > memory:
        return found
    return _by_steps(gram, d, p, tolerance, found)


def _by_steps(gram: Gram, d: int, p: int, tolerance: float, found: Eigenvalues) -> Eigenvalues:
    """Takes block power steps Q ← orth(G·Q) until the bounds are within the tolerance."""
    axes = p - _RANDOM_COLUMNS
    block = np.zeros((gram.size, p), order="F")
    block[np.arange(axes), np.arange(axes)] = 1.0
    block[:, axes:] = np.random.default_rng(0).standard_normal((gram.size, _RANDOM_COLUMNS))
    with Progress("block power steps", _MOST_STEPS) as progress:
        image = gram.times(block)
        for step in range(1, _MOST_STEPS + 1):
            block = _orthonormal(image)
            image = gram.times(block)
            new = _ritz(gram, block, image, step)
            low, high = np.maximum(found.low, new.low), np.minimum(found.high, new.high)
            values = np.concatenate([new.values, found.values[len(new.values) :]])
            found = Eigenvalues(values, low, high, gram.trace, new.method)
            progress.show(step)
            if found.uncertainty(d) <= tolerance:
                break
    return found


def _orthonormal(block: np.ndarray) -> np.ndarray:
    """Overwrites a block in Fortran order with orthonormal columns of the same span; returns it.

    Two Cholesky factorisations take a fifth of the time of Householder's QR. Nearly dependent
    columns need QR.
    """
    for _ in range(2):
        block /= np.maximum(np.linalg.norm(block, axis=0), np.finfo(float).tiny)
        products = block.T @ block
        try:
            factor = scipy.linalg.cholesky(products, overwrite_a=True, check_finite=False)
        except scipy.linalg.LinAlgError:
            return np.asarray(scipy.linalg.qr(block, mode="economic", check_finite=False)[0])
        block = scipy.linalg.blas.dtrsm(1.0, factor, block, side=1, overwrite_b=True)
    # Unless rounding was large, the second factor is close to the identity.
    if np.max(np.abs(np.diag(factor) - 1)) > _ROUNDING:
        return np.asarray(scipy.linalg.qr(block, mode="economic", check_finite=False)[0])
    return np.asarray(block)


def _ritz(gram: Gram, block: np.ndarray, image: np.ndarray, step: int) -> Eigenvalues:
    """Returns the bounds from a block of orthonormal columns and G·block."""
    projected = block.T @ image
    projected = (projected + projected.T) / 2
    # ‖B‖_F²
    coupling = max(float(np.linalg.norm(image) ** 2 - np.linalg.norm(projected) ** 2), 0.0)
    theta = scipy.linalg.eigvalsh(projected, overwrite_a=True, check_finite=False)[::-1]
    limit = _largest_outside(gram, block)

    def outside(level: float) -> float:
        """Returns tr(B·T⁻¹·Bᵀ) for T = (μ − λ_max(C))·1, so C + T − μ has no positive part."""
        return coupling / (level - limit) if level > limit else np.inf

    values = np.sort(np.concatenate([theta, gram.alone]))[::-1]
    high = _upper(gram, values, values, outside)
    low = np.full(len(high), values.sum())
    low[: len(values) + 1] = _sums(values)
    size = f"{block.shape[1]:,} of {gram.size:,} dimensions"
    return Eigenvalues(values, low, high, gram.trace, f"{size}, {step} block power steps")


def _largest_outside(gram: Gram, block: np.ndarray) -> float:
    """Returns an upper bound of the largest eigenvalue of G on the block's orthogonal complement.

    Adds the residual's norm to the Lanczos value. The bound holds unless the random start is almost
    orthogonal to the eigenvector.
    """

    def outside(vector: np.ndarray) -> np.ndarray:
        return np.asarray(vector - block @ (vector @ block))

    basis = [outside(np.random.default_rng(1).standard_normal(gram.size))]
    lengths, diagonal = [float(np.linalg.norm(basis[0]))], []
    while len(basis) <= _LANCZOS_STEPS:
        basis[-1] /= lengths[-1]
        image = outside(gram.times(basis[-1][:, None])[:, 0])
        diagonal.append(float(basis[-1] @ image))
        for vector in basis * 2:  # once would leave growing rounding errors
            image -= (vector @ image) * vector
        basis.append(image)
        lengths.append(float(np.linalg.norm(image)))
        if lengths[-1] <= _NEGLIGIBLE * gram.trace:
            break
    values, vectors = scipy.linalg.eigh_tridiagonal(diagonal, lengths[1:-1])
    return float(values[-1] + lengths[-1] * abs(vectors[-1, -1]))


def _upper(
    gram: Gram, values: np.ndarray, known: np.ndarray, remainder: Callable[[float], float]
) -> np.ndarray:
    """Returns min over μ of d·μ + Σ(known − μ)₊ + remainder(μ), at most the trace: [V′ + 1]."""
    d = np.arange(gram.size + len(gram.alone) + 1)
    high = np.full(len(d), gram.trace)
    places = np.unique(np.geomspace(1, len(values), _LEVELS).astype(int)) - 1
    ascending = np.sort(known)
    tails = np.append(np.cumsum(ascending[::-1])[::-1], 0.0)
    for level in np.unique(values[places]):
        above = np.searchsorted(ascending, level, side="right")
        excess = tails[above] - level * (len(ascending) - above) + remainder(float(level))
        if np.isfinite(excess):
            np.minimum(high, d * level + excess, out=high)
    high[0] = 0.0
    return high


def _sums(values: np.ndarray) -> np.ndarray:
    """Returns the sums of the first 0, 1, 2, … values."""
    return np.append(0.0, np.cumsum(values))
