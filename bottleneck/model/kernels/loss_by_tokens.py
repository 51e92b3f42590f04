"""The loss by chunks of tokens, with the head's rows whole on this device or gathered first.

The gradient is made while a chunk's logits are in memory. So a token costs three products with the
head, one less than computing the logits again. Symbols as in `loss_pieces`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bottleneck.model.kernels.loss_pieces import (
    ROW_UNIT,
    Chunking,
    Layout,
    Logits,
    Sums,
    add_logits,
    empty_sums,
    gather_columns,
    logits_gradient,
    logits_of,
    over_devices,
    scatter_columns,
    sum_others,
)


def statistics(
    layout: Layout, chunking: Chunking, projected: jax.Array, rows: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """float32 [b, L]: log-sum-exp of every token's logits, and the logit of its target."""
    rows = gather_columns(layout, rows, projected.dtype)
    length = projected.shape[1]
    chunk_length = _chunk_length(projected.shape, chunking)

    def one_chunk(_: None, arrays: tuple[jax.Array, ...]) -> tuple[None, tuple[jax.Array, ...]]:
        return None, over_devices(_chunk(layout, chunking, rows, *arrays)[1], layout)

    arrays = tuple(_split(array, chunk_length) for array in (projected, targets))
    _, (lse, target_logits) = jax.lax.scan(one_chunk, None, arrays)
    return _join(lse)[:, :length], _join(target_logits)[:, :length]


def gradients(
    layout: Layout,
    chunking: Chunking,
    z_loss: float,
    projected: jax.Array,
    rows: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """`statistics`, and the gradients with respect to this device's `projected` and `rows`."""
    rows_dtype, rows = rows.dtype, gather_columns(layout, rows, projected.dtype)
    length = projected.shape[1]
    chunk_length = _chunk_length(projected.shape, chunking)

    def one_chunk(
        rows_gradient: jax.Array, arrays: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        h, t, w = arrays
        logits, found = _chunk(layout, chunking, rows, h, t)
        lse, target_logits = over_devices(found, layout)
        gradient = logits_gradient(logits, lse, w, z_loss).astype(h.dtype)
        h_gradient = jnp.einsum("blv,vk->blk", gradient, rows)
        rows_gradient += jnp.einsum("blv,blk->vk", gradient, h, preferred_element_type=jnp.float32)
        return rows_gradient, (h_gradient, lse, target_logits)

    arrays = tuple(_split(array, chunk_length) for array in (projected, targets, weights))
    start = jnp.zeros(rows.shape, jnp.float32)
    rows_gradient, results = jax.lax.scan(one_chunk, start, arrays)
    h_gradient, lse, target_logits = (_join(result)[:, :length] for result in results)
    return (
        (lse, target_logits),
        (
            jax.lax.psum(h_gradient, layout.vocab),
            sum_others(layout, scatter_columns(layout, rows_gradient)).astype(rows_dtype),
        ),
    )


def _chunk(
    layout: Layout, chunking: Chunking, rows: jax.Array, projected: jax.Array, targets: jax.Array
) -> tuple[Logits, Sums]:
    """Returns the logits of a chunk of tokens for all rows of this device, and their sums."""
    place = (targets, layout.first_row(rows.shape[0]), chunking.n_rows)
    logits = logits_of(projected, rows, *place)
    start = empty_sums(lambda: logits_of(projected, rows[:ROW_UNIT], *place), targets)
    return logits, add_logits(start, lambda _: logits, projected)


def _chunk_length(shape: tuple[int, ...], chunking: Chunking) -> int:
    batch, length = shape[:2]
    return min(length, max(1, chunking.chunk // batch))


def _split(array_bxL: jax.Array, chunk_length: int) -> jax.Array:
    """[b, L, ...] → [n_chunks, b, chunk_length, ...], padded with zeros to a multiple."""
    padding = -array_bxL.shape[1] % chunk_length
    widths = [(0, 0), (0, padding)] + [(0, 0)] * (array_bxL.ndim - 2)
    padded = jnp.pad(array_bxL, widths)
    split = padded.reshape(array_bxL.shape[0], -1, chunk_length, *array_bxL.shape[2:])
    return jnp.moveaxis(split, 1, 0)


def _join(array: jax.Array) -> jax.Array:
    """[n_chunks, b, chunk_length, ...] → [b, n_chunks·chunk_length, ...]."""
    moved = jnp.moveaxis(array, 0, 1)
    return moved.reshape(moved.shape[0], -1, *moved.shape[3:])
