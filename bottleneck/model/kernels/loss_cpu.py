"""The loss on one CPU, with as few passes over the logits as possible.

On a CPU a pass over [tokens, V] costs a fifth of a product, and transposing a matrix copies it. So
the logits yield only exp(z − max z). Its sum is the softmax's denominator. Products with the
gradient w·(softmax − target) are split: a token's factors scale the small side, and the target
selects a row. The head's gradient is summed transposed, [K, V].
All products are float32: in bfloat16 a softmax near 1 less its target would be lost to rounding.
n: tokens; V: rows of the head; K: columns of its rows.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bottleneck.model.kernels.loss_pieces import Found, Gradients, LossPlan, Share, scan_chunks


def statistics(plan: LossPlan, share: Share) -> Found:
    rows = share.rows.astype(jnp.float32)[: plan.n_rows]

    def one_chunk(_: None, arrays: tuple[jax.Array, ...]) -> tuple[None, tuple[jax.Array, ...]]:
        return None, _exponentials(rows, *arrays)[3:]

    arrays = (share.projected.reshape(-1, rows.shape[1]), share.targets.reshape(-1))
    lse, target_logits = scan_chunks(one_chunk, None, arrays, plan.chunk, axis=0)[1]
    return lse.reshape(share.targets.shape), target_logits.reshape(share.targets.shape)


def gradients(plan: LossPlan, share: Share) -> Gradients:
    hidden_nxK = share.projected.reshape(-1, share.rows.shape[1])
    targets_n, weights_n = share.targets.reshape(-1), share.weights.reshape(-1)
    n_padding = share.rows.shape[0] - plan.n_rows
    rows = share.rows[: plan.n_rows]

    def one_chunk(
        rows_gradient_KxV: jax.Array, arrays: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        hidden, targets, weights = arrays
        exponentials, total, target_rows, lse, target_logits = _exponentials(rows, hidden, targets)
        scale = (weights * (1 + 2 * plan.z_loss * lse) / total)[:, None]
        hidden_gradient = scale * jnp.einsum("nv,vk->nk", exponentials, rows)
        hidden_gradient -= weights[:, None] * target_rows
        rows_gradient_KxV += jnp.einsum("nk,nv->kv", scale * hidden, exponentials)
        return rows_gradient_KxV, (lse, target_logits, hidden_gradient)

    start, arrays = jnp.zeros(rows.shape[::-1]), (hidden_nxK, targets_n, weights_n)
    rows_gradient_KxV, (lse, target_logits, hidden_gradient) = scan_chunks(
        one_chunk, start, arrays, plan.chunk, axis=0
    )
    rows_gradient = jnp.pad(rows_gradient_KxV.T, ((0, n_padding), (0, 0)))
    rows_gradient = rows_gradient.at[targets_n].add(-weights_n[:, None] * hidden_nxK)
    return (
        (lse.reshape(share.targets.shape), target_logits.reshape(share.targets.shape)),
        (hidden_gradient.reshape(share.projected.shape), rows_gradient),
    )


def _exponentials(rows: jax.Array, hidden: jax.Array, targets: jax.Array) -> tuple[jax.Array, ...]:
    """Returns exp(z − max z) [c, V], its sums [c], target rows [c, K], and the chunk's `Found`."""
    logits = jnp.einsum("nk,vk->nv", hidden, rows)
    top = jnp.max(logits, axis=-1)
    exponentials = jnp.exp(logits - top[:, None])
    total = jnp.sum(exponentials, axis=-1)
    target_rows = rows[targets]
    target_logits = jnp.sum(hidden * target_rows, axis=-1)
    return exponentials, total, target_rows, top + jnp.log(total), target_logits
