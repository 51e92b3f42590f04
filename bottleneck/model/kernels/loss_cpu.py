"""The loss on one CPU, with as few passes over the logits as possible.

On a CPU a pass over [tokens, V] costs a fifth of a product, and transposing a matrix copies it. So
the logits yield only exp(z − max z). Its sum is the softmax's denominator. Products with the
gradient w·(softmax − target) are split: a token's factors scale the small side, and the target
selects a row. The head's gradient is summed transposed, [K, V].
All products are float32: in bfloat16 a softmax near 1 less its target would be lost to rounding.
n: tokens; V: rows of the head; K: columns of its rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bottleneck.model.kernels.loss_pieces import Chunking, Layout


class _Chunk(NamedTuple):
    exponentials: jax.Array  # [c, V]: exp(z − max z)
    total: jax.Array  # [c]: their sums
    lse: jax.Array  # [c]
    target_rows: jax.Array  # [c, K]
    target_logits: jax.Array  # [c]


def statistics(
    layout: Layout, chunking: Chunking, projected: jax.Array, rows: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """float32 [b, L]: log-sum-exp of every token's logits, and the logit of its target."""
    rows = rows.astype(jnp.float32)[: chunking.n_rows]

    def one_chunk(_: None, arrays: tuple[jax.Array, ...]) -> tuple[None, tuple[jax.Array, ...]]:
        found = _exponentials(rows, *arrays)
        return None, (found.lse, found.target_logits)

    arrays = (projected.reshape(-1, rows.shape[1]), targets.reshape(-1))
    lse, target_logits = _by_chunks(one_chunk, None, arrays, chunking.chunk)[1]
    return lse.reshape(targets.shape), target_logits.reshape(targets.shape)


def gradients(
    layout: Layout,
    chunking: Chunking,
    z_loss: float,
    projected: jax.Array,
    rows: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """`statistics`, and the gradients with respect to `projected` and `rows`."""
    hidden_nxK = projected.reshape(-1, rows.shape[1])
    targets_n, weights_n = targets.reshape(-1), weights.reshape(-1)
    n_padding = rows.shape[0] - chunking.n_rows
    rows = rows[: chunking.n_rows]

    def one_chunk(
        rows_gradient_KxV: jax.Array, arrays: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        hidden, targets, weights = arrays
        found = _exponentials(rows, hidden, targets)
        scale = (weights * (1 + 2 * z_loss * found.lse) / found.total)[:, None]
        hidden_gradient = scale * jnp.einsum("nv,vk->nk", found.exponentials, rows)
        hidden_gradient -= weights[:, None] * found.target_rows
        rows_gradient_KxV += jnp.einsum("nk,nv->kv", scale * hidden, found.exponentials)
        return rows_gradient_KxV, (found.lse, found.target_logits, hidden_gradient)

    rows_gradient_KxV, (lse, target_logits, hidden_gradient) = _by_chunks(
        one_chunk,
        jnp.zeros(rows.shape[::-1]),
        (hidden_nxK, targets_n, weights_n),
        chunking.chunk,
    )
    rows_gradient = jnp.pad(rows_gradient_KxV.T, ((0, n_padding), (0, 0)))
    rows_gradient = rows_gradient.at[targets_n].add(-weights_n[:, None] * hidden_nxK)
    return (
        (lse.reshape(targets.shape), target_logits.reshape(targets.shape)),
        (hidden_gradient.reshape(projected.shape), rows_gradient),
    )


def _exponentials(rows: jax.Array, hidden: jax.Array, targets: jax.Array) -> _Chunk:
    logits = jnp.einsum("nk,vk->nv", hidden, rows)
    top = jnp.max(logits, axis=-1)
    exponentials = jnp.exp(logits - top[:, None])
    total = jnp.sum(exponentials, axis=-1)
    target_rows = rows[targets]
    target_logits = jnp.sum(hidden * target_rows, axis=-1)
    return _Chunk(exponentials, total, top + jnp.log(total), target_rows, target_logits)


def _by_chunks(
    one_chunk: Callable[..., Any], start: Any, arrays: tuple[jax.Array, ...], chunk: int
) -> tuple[Any, Any]:
    """Returns (final carry, results [n, ...]) of a scan over chunks of arrays [n, ...]."""
    n_tokens = arrays[0].shape[0]
    chunk = min(chunk, n_tokens)
    n_chunks = -(-n_tokens // chunk)

    def split(array: jax.Array) -> jax.Array:
        padding = [(0, n_chunks * chunk - n_tokens)] + [(0, 0)] * (array.ndim - 1)
        return jnp.pad(array, padding).reshape(n_chunks, chunk, *array.shape[1:])

    def join(array: jax.Array) -> jax.Array:
        return array.reshape(n_chunks * chunk, *array.shape[2:])[:n_tokens]

    carried, results = jax.lax.scan(one_chunk, start, tuple(map(split, arrays)))
    return carried, tuple(map(join, results))
