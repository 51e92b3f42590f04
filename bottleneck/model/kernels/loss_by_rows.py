"""The loss by blocks of rows, for a head with too many columns to gather from `fsdp` at once.

The first pass gathers one block of rows after another and updates the log-sum-exp. The second makes
the gradient, and reduces and scatters that of each block at once. A token costs four products with
the head. Symbols as in `loss_pieces`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from bottleneck.model.kernels import loss_pieces as pieces

_Block = tuple[jax.Array, jax.Array]  # some of this device's rows, and the number of their first


def statistics(plan: pieces.LossPlan, share: pieces.Share) -> pieces.Found:
    projected, rows, targets, _ = share
    first_row = plan.first_row(rows.shape[0])

    def one_block(sums: pieces.Sums, block: _Block) -> tuple[pieces.Sums, None]:
        shard, start = block
        gathered = plan.gather(shard, projected.dtype)
        place = (targets, first_row + start, plan.n_rows, rows.shape[0] - start)
        return sums.add(lambda h: pieces.logits_of(h, gathered, *place), projected), None

    def few() -> pieces.Logits:
        few_rows = plan.gather(rows[: pieces.ROW_UNIT], projected.dtype)
        return pieces.logits_of(projected, few_rows, targets, first_row, plan.n_rows)

    sums, _ = jax.lax.scan(one_block, pieces.Sums.empty(few, targets), _row_blocks(plan, share))
    return sums.over_devices(plan)


def gradients(plan: pieces.LossPlan, share: pieces.Share) -> pieces.Gradients:
    projected, rows, targets, weights = share
    einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    lse, target_logits = statistics(plan, share)
    first_row = plan.first_row(rows.shape[0])

    def one_block(h_gradient: jax.Array, block: _Block) -> tuple[jax.Array, jax.Array]:
        shard, start = block
        gathered = plan.gather(shard, projected.dtype)
        place = (targets, first_row + start, plan.n_rows, rows.shape[0] - start)
        logits = pieces.logits_of(projected, gathered, *place)
        gradient = logits.gradient(lse, weights, plan.z_loss).astype(projected.dtype)
        h_gradient += einsum("blv,vk->blk", gradient, gathered)
        return h_gradient, plan.scatter(einsum("blv,blk->vk", gradient, projected))

    start = jnp.zeros(projected.shape, jnp.float32)
    h_gradient, block_gradients = jax.lax.scan(one_block, start, _row_blocks(plan, share))
    h_gradient = jax.lax.psum(h_gradient, plan.vocab).astype(projected.dtype)
    rows_gradient = block_gradients.reshape(-1, rows.shape[1])[: rows.shape[0]]
    return (lse, target_logits), (h_gradient, plan.sum_others(rows_gradient).astype(rows.dtype))


def _row_blocks(plan: pieces.LossPlan, share: pieces.Share) -> _Block:
    """Returns the stacked blocks of this device's rows, [n_blocks, block, K/shards]."""
    n_rows = share.rows.shape[0]
    wanted = max(pieces.ROW_UNIT, plan.chunk * n_rows // share.targets.size)
    block = min(n_rows, -(-wanted // pieces.ROW_UNIT) * pieces.ROW_UNIT)
    n_blocks = -(-n_rows // block)
    padded = jnp.pad(share.rows, ((0, n_blocks * block - n_rows), (0, 0)))
    return padded.reshape(n_blocks, block, -1), block * jnp.arange(n_blocks)
