"""Singular values of the head, without an SVD on the device and without moving the head.

The device reduces A to a few R×R arrays by Cholesky-QR; the host finishes in float64.
V: rows of the head, v of them real; D: hidden width; R: rank; W = A @ B, A [V, R], B [R, D]. A full
head has A [V, D] and no B.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from bottleneck.model.head import HeadFactors
from bottleneck.model.kernels.halves import gram_product, triangular_product
from bottleneck.probes.vocabulary import EXACT, Axes, RowBlocks, on_mesh, widest_row_axes

_EPSILON = float(jnp.finfo(jnp.float32).eps)
# A block, its product and their Gram matrix fit into a core's cache at D = 512.
_BLOCK_ROWS = 1536
_SUBSET_ROWS = 3  # times R; a block is also the sample and needs at least as many rows

_SAMPLE_PASSES = 3  # each takes a condition number κ to about κ/100
_MAX_PASSES = 7
_ILL_CONDITIONED = 4.0  # ‖G‖·‖G⁻¹‖/R, Frobenius norms; 1 for the identity
_PRODUCT_NOISE = 3e-5  # relative rounding error above which products are split into leading bits
_RESOLUTION = 6e-4  # in units of the root mean square row norm

_matmul = functools.partial(jnp.matmul, precision=EXACT)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ReducedHead:
    """The device's reduction of a head; float32, replicated.

    X is the preconditioner and A_c the rows of A minus their mean: gram = (A_c X)ᵀ (A_c X).

    gram: [R, R], of condition number near 1.
    preconditioner: [R, R], upper triangular.
    mean: [R], √v times the mean row, so that AᵀA = A_cᵀA_c + mean·meanᵀ.
    basis, n_rows: [R, D] or None, and v, as in the head's factors.
    """

    gram: jax.Array
    preconditioner: jax.Array
    mean: jax.Array
    basis: jax.Array | None
    n_rows: int = field(metadata={"static": True})


@dataclass(frozen=True)
class HeadSpectrum:
    """Singular values of a head.

    values: float64 [min(v, D)], descending; zeros beyond a factored head's rank.
    first_bounded_index: values from this index on are only upper bounds. Float32 cannot resolve
        them beside the largest. Earlier ones are exact to about 1e-5 relative.
    """

    values: np.ndarray
    first_bounded_index: int


def head_spectrum(factors: HeadFactors, *, centred: bool = False) -> np.ndarray:
    """Returns the singular values of W, or of W − 1·w̄ᵀ: float64 [min(v, D)], descending."""
    return read_core(factors).spectrum(centred=centred).values


def read_core(factors: HeadFactors) -> HeadCore:
    """Returns the core of a head on any device or mesh."""
    return HeadCore(_reduce_head(factors))


def reduce_head(factors: HeadFactors) -> ReducedHead:
    """Returns the R×R factor that the host needs: the device's part of the work.

    A Gram matrix squares the condition number, so float32 loses small singular values in it. A
    triangular X that makes A X nearly orthonormal avoids that. The host undoes X exactly, however
    it was rounded.

    A mesh splits the rows over as many devices as divide them.
    Source: Fukaya et al. 2020 (shifted CholeskyQR3); Garrison and Ipsen 2024 (a preconditioner from
        a few rows).
    """
    axes = widest_row_axes(factors.rows.shape[0])
    reduce_rows = on_mesh(
        functools.partial(_reduce_rows, n_rows=factors.n_rows, axes=axes),
        in_specs=PartitionSpec(axes),
        out_specs=PartitionSpec(),
    )
    gram, preconditioner, mean = reduce_rows(factors.rows)
    return ReducedHead(gram, preconditioner, mean, factors.basis, factors.n_rows)


_reduce_head = jax.jit(reduce_head)


class HeadCore:
    """Small float64 arrays on the host with the same WᵀW as the head.

    raw: [R+1, D], for W.
    centred: [R, D], for W − 1·w̄ᵀ, whose softmax is that of W.
    resolution: roughly the smallest singular value that float32 resolves.
    """

    def __init__(self, reduced: ReducedHead):
        preconditioner = np.asarray(reduced.preconditioner, np.float64)
        root = _square_root(np.asarray(reduced.gram, np.float64))
        rows = np.linalg.solve(preconditioner.T, root.T).T
        self.centred, self.raw = rows, np.vstack([rows, np.asarray(reduced.mean, np.float64)])
        self.rank, self.n_rows = len(rows), reduced.n_rows
        # Rounding errors of the rows are independent, so their effect falls with √v.
        self.resolution = _RESOLUTION * (np.linalg.norm(rows) / np.sqrt(self.n_rows))
        if reduced.basis is not None:
            basis = np.asarray(reduced.basis, np.float64)
            self.centred, self.raw = self.centred @ basis, self.raw @ basis
            self.resolution *= np.linalg.norm(basis, 2)

    def spectrum(self, *, centred: bool = False) -> HeadSpectrum:
        """Returns the singular values, by a float64 SVD: the host's part of the work."""
        return self.resolved(np.linalg.svd(self.centred if centred else self.raw, compute_uv=False))

    def resolved(self, found: np.ndarray) -> HeadSpectrum:
        """Returns the spectrum from known singular values of `raw` or `centred`."""
        values = np.zeros(min(self.n_rows, self.raw.shape[1]))
        rank = min(self.rank, len(values))
        found = found[:rank]
        values[:rank] = np.maximum(found, self.resolution)
        is_exact = found > self.resolution
        return HeadSpectrum(values, len(values) if is_exact.all() else int(np.sum(is_exact)))


def _square_root(gram: np.ndarray) -> np.ndarray:
    """Returns S with SᵀS = gram, which is positive semi-definite up to rounding."""
    try:
        return np.linalg.cholesky(gram).T
    except np.linalg.LinAlgError:  # singular: columns of the head that are zero, or equal
        eigenvalues, vectors = np.linalg.eigh(gram)
        return np.sqrt(np.maximum(eigenvalues, 0.0))[:, None] * vectors.T


class _Passes(NamedTuple):
    n_passes: jax.Array
    preconditioner: jax.Array
    gram: jax.Array
    inverse_root: jax.Array  # of the Gram matrix


def _reduce_rows(
    rows: jax.Array, *, n_rows: int, axes: Axes
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns gram, preconditioner and mean of `ReducedHead`, from this device's rows.

    The first passes look for X in a few evenly spaced rows only. One pass over all rows follows.
    More follow if the result is still far from orthonormal, because a few rows are very long.
    """
    width = rows.shape[1]
    blocks = RowBlocks(rows, n_rows, axes, max(_BLOCK_ROWS, _SUBSET_ROWS * width))
    sample = blocks.sample()

    def add_rows(index: jax.Array, sums: jax.Array) -> jax.Array:
        block, counts = blocks(index)
        block = jnp.where(counts, block, 0.0)
        return sums + jnp.stack([jnp.sum(block, axis=0), jnp.sum(block**2, axis=0)])

    sums = jax.lax.fori_loop(0, blocks.number, add_rows, jnp.zeros((2, width)))
    mean, square = jax.lax.psum(sums, axes) / n_rows
    row_norm = jnp.sqrt(jnp.sum(jnp.maximum(square - mean**2, 0.0)))

    def one_pass(state: _Passes) -> _Passes:
        is_sample = state.n_passes < _SAMPLE_PASSES
        preconditioner = _matmul(state.preconditioner, state.inverse_root)
        # Relative rounding error of the rows' products with X.
        noise = row_norm * jnp.max(jnp.linalg.norm(preconditioner, axis=0)) * _EPSILON

        def add_block(index: jax.Array, total: jax.Array) -> jax.Array:
            block, counts = jax.lax.cond(is_sample, lambda: sample, lambda: blocks(index))
            block = jnp.where(counts, block - mean, 0.0)
            product = jax.lax.cond(
                noise > _PRODUCT_NOISE,
                functools.partial(triangular_product, _split_matmul),
                functools.partial(triangular_product, _matmul),
                block,
                preconditioner,
            )
            return total + gram_product(_matmul, product)

        n_blocks = jnp.where(is_sample, 1, blocks.number)
        total = jax.lax.fori_loop(0, n_blocks, add_block, jnp.zeros((width, width)))
        gram = jax.lax.psum(jnp.tril(total) + jnp.tril(total, -1).T, axes)
        return _Passes(state.n_passes + 1, preconditioner, gram, _inverse_root(gram))

    def is_unfinished(state: _Passes) -> jax.Array:
        inverse = _matmul(state.inverse_root, state.inverse_root.T)
        condition = jnp.linalg.norm(state.gram) * jnp.linalg.norm(inverse) / width
        return (state.n_passes <= _SAMPLE_PASSES) | (
            (state.n_passes < _MAX_PASSES) & (condition > _ILL_CONDITIONED)
        )

    identity = jnp.eye(width)
    start = _Passes(jnp.int32(0), identity, identity, identity)
    end = jax.lax.while_loop(is_unfinished, one_pass, start)
    return end.gram, end.preconditioner, mean * np.sqrt(n_rows)


def _split_matmul(left: jax.Array, right: jax.Array) -> jax.Array:
    """Returns left @ right for terms that cancel: products of leading bits are exact."""
    bits = (24 - (left.shape[1] - 1).bit_length()) // 2  # the sum of products fits into 24 bits
    parts = (_coarse(left, 1, bits), _coarse(right, 0, bits))
    # Without a barrier a TPU's compiler takes a minute to fuse the splitting into the products.
    coarse_left, coarse_right = jax.lax.optimization_barrier(parts)
    rest = _matmul(left - coarse_left, right) + _matmul(coarse_left, right - coarse_right)
    return _matmul(coarse_left, coarse_right) + rest


def _coarse(array: jax.Array, axis: int, bits: int) -> jax.Array:
    """Returns the array rounded to integers of `bits` bits times a power of two along the axis."""
    _, exponent = jnp.frexp(jnp.max(jnp.abs(array), axis=axis, keepdims=True))
    return jnp.ldexp(jnp.round(jnp.ldexp(array, bits - exponent)), exponent - bits)


def _inverse_root(gram: jax.Array) -> jax.Array:
    """Returns upper triangular S⁻¹ with SᵀS = gram, scaled to a unit diagonal and shifted.

    The shift exceeds the rounding errors of the eigenvalues, so Cholesky does not fail. Directions
    below the shift grow with every pass.
    """
    diagonal = jnp.diagonal(gram)
    scale = jnp.where(diagonal > 0, jax.lax.rsqrt(jnp.where(diagonal > 0, diagonal, 1.0)), 1.0)
    identity = jnp.eye(len(gram))
    shifted = gram * scale[:, None] * scale + 4 * len(gram) * _EPSILON * identity
    factor = jnp.linalg.cholesky(shifted)
    inverse = jax.lax.linalg.triangular_solve(factor, identity, left_side=True, lower=True)
    return inverse.T * scale[:, None]
