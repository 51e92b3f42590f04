"""The loss by blocks of rows, for a head with too many columns to gather from `fsdp` at once.

The first pass gathers one block of rows after another and updates the log-sum-exp. The second makes
the gradient, and reduces and scatters that of each block at once. A token costs four products with
the head. Symbols as in `loss_pieces`.
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
    first_row = layout.first_row(rows.shape[0])
    blocks, starts = _row_blocks(layout, chunking, projected, rows)

    def one_block(sums: Sums, block: tuple[jax.Array, jax.Array]) -> tuple[Sums, None]:
        shard, start = block
        gathered = gather_columns(layout, shard, projected.dtype)
        place = (targets, first_row + start, chunking.n_rows, rows.shape[0] - start)
        return add_logits(sums, lambda h: logits_of(h, gathered, *place), projected), None

    def few() -> Logits:
        few_rows = gather_columns(layout, rows[:ROW_UNIT], projected.dtype)
        return logits_of(projected, few_rows, targets, first_row, chunking.n_rows)

    sums, _ = jax.lax.scan(one_block, empty_sums(few, targets), (blocks, starts))
    return over_devices(sums, layout)


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
    lse, target_logits = statistics(layout, chunking, projected, rows, targets)
    first_row = layout.first_row(rows.shape[0])
    blocks, starts = _row_blocks(layout, chunking, projected, rows)

    def one_block(
        h_gradient: jax.Array, block: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        shard, start = block
        gathered = gather_columns(layout, shard, projected.dtype)
        logits = logits_of(
            projected,
            gathered,
            targets,
            first_row + start,
            chunking.n_rows,
            rows.shape[0] - start,
        )
        gradient = logits_gradient(logits, lse, weights, z_loss).astype(projected.dtype)
        h_gradient += jnp.einsum(
            "blv,vk->blk", gradient, gathered, preferred_element_type=jnp.float32
        )
        block_gradient = jnp.einsum(
            "blv,blk->vk", gradient, projected, preferred_element_type=jnp.float32
        )
        return h_gradient, scatter_columns(layout, block_gradient)

    start = jnp.zeros(projected.shape, jnp.float32)
    h_gradient, block_gradients = jax.lax.scan(one_block, start, (blocks, starts))
    rows_gradient = block_gradients.reshape(-1, rows.shape[1])[: rows.shape[0]]
    return (
        (lse, target_logits),
        (
            jax.lax.psum(h_gradient, layout.vocab).astype(projected.dtype),
            sum_others(layout, rows_gradient).astype(rows.dtype),
        ),
    )


def _row_blocks(
    layout: Layout, chunking: Chunking, projected: jax.Array, rows: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns this device's rows in blocks, [n_blocks, block, K/shards], and their first rows."""
    n_rows, n_tokens = rows.shape[0], projected.shape[0] * projected.shape[1]
    wanted = max(ROW_UNIT, chunking.chunk * n_rows // n_tokens)
    block = min(n_rows, -(-wanted // ROW_UNIT) * ROW_UNIT)
    n_blocks = -(-n_rows // block)
    padded = jnp.pad(rows, ((0, n_blocks * block - n_rows), (0, 0)))
    return padded.reshape(n_blocks, block, -1), block * jnp.arange(n_blocks)
