"""Cross-entropy of a head whose logits are never all in memory.

B: sequences; L: tokens; D: hidden width; V: rows of the head; K: columns of its rows, R or D.
The tokens are taken a chunk of positions at a time. Where a gradient is asked for, it is made in
the same pass, while a chunk's logits are at hand: three products with the head a token, not the
four that recomputing them would take. Log-sum-exp and every sum are float32 whatever the inputs.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from bottleneck.model.head import HeadFactors

# Added to the logits of padded rows: their probability is 0 to the last bit, and no NaN can arise.
_PADDING = -1e30


def cross_entropy(
    factors: HeadFactors,
    hidden_BxLxD: jax.Array,
    targets_BxL: jax.Array,
    weights_BxL: jax.Array,
    *,
    vocab_size: int,
    chunk: int,
    z_loss: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Sums over tokens: (the objective, with a gradient; the cross-entropy alone, without one).

    The objective is Σ w·(CE + z_loss·lse²), the cross-entropy Σ w·CE in nats, both float32 scalars;
    divide by Σ w for the mean.

    Args:
        factors: the head; its gradient has the type of its factors.
        hidden_BxLxD: float32 or bfloat16 hidden states, which set the type of the products.
        targets_BxL: int32 in [0, vocab_size).
        weights_BxL: float32; 0 leaves a token out. Not differentiated.
        vocab_size: rows from here on are padding and have no probability.
        chunk: about how many tokens' logits exist at one time.
        z_loss: weight of the squared log-partition (PaLM, Chowdhery et al. 2022, section 5).
    """
    projected = factors.project(hidden_BxLxD)
    chunk_length = _chunk_length(projected.shape, chunk)
    objective, loss = _chunked_sums(
        projected, factors.rows, targets_BxL, weights_BxL, vocab_size, chunk_length, z_loss
    )
    return objective, jax.lax.stop_gradient(loss)


def token_losses(
    factors: HeadFactors,
    hidden_BxLxD: jax.Array,
    targets_BxL: jax.Array,
    *,
    vocab_size: int,
    chunk: int,
) -> jax.Array:
    """float32 [B, L] cross-entropy of every token in nats; arguments as `cross_entropy`."""
    projected = factors.project(hidden_BxLxD)
    rows = factors.rows.astype(projected.dtype)
    length = projected.shape[1]
    chunk_length = _chunk_length(projected.shape, chunk)

    def one_chunk(_: None, arrays: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        lse, target_logits, _, _ = _chunk_statistics(*arrays, rows, vocab_size)
        return None, lse - target_logits

    arrays = (_split(projected, chunk_length), _split(targets_BxL, chunk_length))
    _, losses = jax.lax.scan(one_chunk, None, arrays)
    return _join(losses)[:, :length]


def _chunk_length(shape: tuple[int, ...], chunk: int) -> int:
    """Positions of a chunk: whole columns of the batch, so that a sharded batch stays where it is."""
    batch, length = shape[:2]
    return min(length, max(1, chunk // batch))


def _split(array_BxL: jax.Array, chunk_length: int) -> jax.Array:
    """[B, L, ...] → [n_chunks, B, chunk_length, ...], padded with zeros where L does not divide."""
    padding = -array_BxL.shape[1] % chunk_length
    widths = [(0, 0), (0, padding)] + [(0, 0)] * (array_BxL.ndim - 2)
    padded = jnp.pad(array_BxL, widths)
    split = padded.reshape(array_BxL.shape[0], -1, chunk_length, *array_BxL.shape[2:])
    return jnp.moveaxis(split, 1, 0)


def _join(array: jax.Array) -> jax.Array:
    """[n_chunks, B, chunk_length, ...] → [B, n_chunks·chunk_length, ...]."""
    moved = jnp.moveaxis(array, 0, 1)
    return moved.reshape(moved.shape[0], -1, *moved.shape[3:])


def _chunk_statistics(
    projected: jax.Array, targets: jax.Array, rows: jax.Array, vocab_size: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Of one chunk [B, c]: log-sum-exp, target logit [B, c]; logits, is-target mask [B, c, V]."""
    logits = jnp.einsum("blk,vk->blv", projected, rows, preferred_element_type=jnp.float32)
    index = jax.lax.broadcasted_iota(jnp.int32, (1, 1, rows.shape[0]), 2)
    if vocab_size < rows.shape[0]:
        logits = logits + jnp.where(index < vocab_size, 0.0, _PADDING)
    is_target = index == targets[..., None]
    target_logits = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    return jax.nn.logsumexp(logits, axis=-1), target_logits, logits, is_target


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _chunked_sums(
    projected: jax.Array,
    rows: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    vocab_size: int,
    chunk_length: int,
    z_loss: float,
) -> tuple[jax.Array, jax.Array]:
    rows = rows.astype(projected.dtype)

    def one_chunk(sums: jax.Array, arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        h, t, w = arrays
        lse, target_logits, _, _ = _chunk_statistics(h, t, rows, vocab_size)
        return sums + _sums(lse, target_logits, w, z_loss), None

    arrays = tuple(_split(array, chunk_length) for array in (projected, targets, weights))
    sums, _ = jax.lax.scan(one_chunk, jnp.zeros(2), arrays)
    return sums[0], sums[1]


def _sums(lse: jax.Array, target_logits: jax.Array, weights: jax.Array, z_loss: float) -> jax.Array:
    loss = lse - target_logits
    return jnp.stack([jnp.sum(weights * (loss + z_loss * lse**2)), jnp.sum(weights * loss)])


def _forward(
    projected: jax.Array,
    rows: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    vocab_size: int,
    chunk_length: int,
    z_loss: float,
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """The sums, and the gradient of the objective by `projected` and `rows`, in one pass."""
    rows_dtype, rows = rows.dtype, rows.astype(projected.dtype)

    def one_chunk(
        carry: tuple[jax.Array, jax.Array], arrays: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        sums, rows_gradient = carry
        h, t, w = arrays
        lse, target_logits, logits, is_target = _chunk_statistics(h, t, rows, vocab_size)
        # d/dz of w·(lse − z_y + z_loss·lse²), as 1 + 2·z_loss·lse copies of softmax less the target.
        lse_gradient = (w * (1 + 2 * z_loss * lse))[..., None]
        logits_gradient = jnp.exp(logits - lse[..., None]) * lse_gradient
        logits_gradient = logits_gradient - jnp.where(is_target, w[..., None], 0.0)
        logits_gradient = logits_gradient.astype(h.dtype)
        h_gradient = jnp.einsum("blv,vk->blk", logits_gradient, rows)
        rows_gradient = rows_gradient + jnp.einsum(
            "blv,blk->vk", logits_gradient, h, preferred_element_type=jnp.float32
        )
        return (sums + _sums(lse, target_logits, w, z_loss), rows_gradient), h_gradient

    arrays = tuple(_split(array, chunk_length) for array in (projected, targets, weights))
    start = (jnp.zeros(2), jnp.zeros(rows.shape, jnp.float32))
    (sums, rows_gradient), h_gradients = jax.lax.scan(one_chunk, start, arrays)
    projected_gradient = _join(h_gradients)[:, : projected.shape[1]]
    return (sums[0], sums[1]), (projected_gradient, rows_gradient.astype(rows_dtype))


def _backward(
    vocab_size: int,
    chunk_length: int,
    z_loss: float,
    gradients: tuple[jax.Array, jax.Array],
    cotangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array, None, None]:
    projected_gradient, rows_gradient = (
        (cotangents[0] * gradient).astype(gradient.dtype) for gradient in gradients
    )
    return projected_gradient, rows_gradient, None, None


_chunked_sums.defvjp(_forward, _backward)
