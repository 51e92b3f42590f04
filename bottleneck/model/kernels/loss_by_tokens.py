"""The loss by chunks of tokens, with the head's rows whole on this device or gathered first.

The gradient is made while a chunk's logits are in memory. So a token costs three products with the
head, one less than computing the logits again. Symbols as in `loss_pieces`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bottleneck.model.kernels import loss_pieces as pieces


def statistics(plan: pieces.LossPlan, share: pieces.Share) -> pieces.Found:
    rows = plan.gather(share.rows, share.projected.dtype)

    def one_chunk(_: None, arrays: tuple[jax.Array, ...]) -> tuple[None, pieces.Found]:
        return None, _chunk(plan, rows, *arrays)[1]

    arrays = (share.projected, share.targets)
    return pieces.scan_chunks(one_chunk, None, arrays, plan.chunk // len(share.targets), axis=1)[1]


def gradients(plan: pieces.LossPlan, share: pieces.Share) -> pieces.Gradients:
    rows = plan.gather(share.rows, share.projected.dtype)

    def one_chunk(
        rows_gradient: jax.Array, arrays: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        h, t, w = arrays
        logits, (lse, target_logits) = _chunk(plan, rows, h, t)
        gradient = logits.gradient(lse, w, plan.z_loss).astype(h.dtype)
        h_gradient = jnp.einsum("blv,vk->blk", gradient, rows)
        rows_gradient += jnp.einsum("blv,blk->vk", gradient, h, preferred_element_type=jnp.float32)
        return rows_gradient, (h_gradient, lse, target_logits)

    arrays = (share.projected, share.targets, share.weights)
    start = jnp.zeros(rows.shape, jnp.float32)
    rows_gradient, (h_gradient, lse, target_logits) = pieces.scan_chunks(
        one_chunk, start, arrays, plan.chunk // len(share.targets), axis=1
    )
    h_gradient = jax.lax.psum(h_gradient, plan.vocab)
    rows_gradient = plan.sum_others(plan.scatter(rows_gradient)).astype(share.rows.dtype)
    return (lse, target_logits), (h_gradient, rows_gradient)


def _chunk(
    plan: pieces.LossPlan, rows: jax.Array, projected: jax.Array, targets: jax.Array
) -> tuple[pieces.Logits, pieces.Found]:
    """Returns the logits of a chunk of tokens for all rows of this device, and the statistics."""
    place = (targets, plan.first_row(rows.shape[0]), plan.n_rows)
    logits = pieces.logits_of(projected, rows, *place)
    start = pieces.Sums.empty(
        lambda: pieces.logits_of(projected, rows[: pieces.ROW_UNIT], *place), targets
    )
    return logits, start.add(lambda _: logits, projected).over_devices(plan)
