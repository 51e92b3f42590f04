"""The cross-entropy of a CPU's tokens, its gradient in as few passes over the logits as can be.

On a CPU a pass over [tokens, V] costs a fifth of a product, and a matrix is turned by copying it.
So all that is made of the logits is exp(z − max z). Its sum is the softmax's, and the gradient
w·(softmax − target) is multiplied with in two parts: a token's factors scale the small side, and
the target is a row. The head's gradient is summed up transposed, [K, V].
This is for products in float32: rounded to bfloat16, a softmax near 1 would lose what its target
leaves of it. n: tokens; V: rows of the head; K: columns of its rows.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def losses_and_gradients(
    hidden_nxK: jax.Array,
    rows: jax.Array,
    targets_n: jax.Array,
    weights_n: jax.Array,
    *,
    vocab_size: int,
    chunk: int,
    z_loss: float,
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """((log-sum-exps, target logits), gradients of Σ w·(CE + z_loss·lse²) by hidden and rows).

    All float32: the first two [n], the gradients [n, K] and [V, K].
    """
    n_tokens = targets_n.shape[0]
    n_chunks = -(-n_tokens // chunk)
    n_padding = rows.shape[0] - vocab_size
    rows = rows[:vocab_size]

    def one_chunk(
        rows_gradient_KxV: jax.Array, arrays: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        hidden, targets, weights = arrays
        target_rows = rows[targets]
        logits = jnp.einsum("nk,vk->nv", hidden, rows)
        top = jnp.max(logits, axis=-1)
        exponentials = jnp.exp(logits - top[:, None])
        total = jnp.sum(exponentials, axis=-1)
        lse = top + jnp.log(total)
        scale = (weights * (1 + 2 * z_loss * lse) / total)[:, None]
        hidden_gradient = scale * jnp.einsum("nv,vk->nk", exponentials, rows)
        hidden_gradient -= weights[:, None] * target_rows
        rows_gradient_KxV += jnp.einsum("nk,nv->kv", scale * hidden, exponentials)
        return rows_gradient_KxV, (lse, jnp.sum(hidden * target_rows, axis=-1), hidden_gradient)

    def split(array: jax.Array) -> jax.Array:
        padding = [(0, n_chunks * chunk - n_tokens)] + [(0, 0)] * (array.ndim - 1)
        return jnp.pad(array, padding).reshape(n_chunks, chunk, *array.shape[1:])

    def join(array: jax.Array) -> jax.Array:
        return array.reshape(n_chunks * chunk, *array.shape[2:])[:n_tokens]

    start = jnp.zeros(rows.shape[::-1])
    arrays = (split(hidden_nxK), split(targets_n), split(weights_n))
    rows_gradient_KxV, results = jax.lax.scan(one_chunk, start, arrays)
    lse, target_logits, hidden_gradient = map(join, results)
    rows_gradient = jnp.pad(rows_gradient_KxV.T, ((0, n_padding), (0, 0)))
    rows_gradient = rows_gradient.at[targets_n].add(-weights_n[:, None] * hidden_nxK)
    return (lse, target_logits), (hidden_gradient, rows_gradient)
