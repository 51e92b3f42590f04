"""Causal attention for a CPU: a block of queries at a time against the keys up to its end.

It skips half of the square of positions, and a block's scores are still in the cache when they are
used. The backward pass keeps the log-sum-exp of every row of scores and computes the weights again,
as flash attention does (Dao et al. 2022).
B: sequences; L: tokens; H: heads; G: key-value heads; K: size of one head.
Queries are laid out as [B, G, H/G, L, K]; those of a block, of all heads that share keys, as
[B, G, Q, K].
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from bottleneck.model.kernels import remat
from bottleneck.model.kernels.cpu import computed_once

_MAX_BLOCKS = 8  # each is compiled separately
_MIN_BLOCK = 64  # queries; smaller ones cost more in calls than they save in positions

_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
_Kept = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


@jax.custom_vjp
def block_attention(
    query_BxLxHxK: jax.Array, key_BxLxGxK: jax.Array, value_BxLxGxK: jax.Array
) -> jax.Array:
    """softmax(q kᵀ/√K, over the tokens up to each one) v: [B, L, H, K]; softmax in float32."""
    return _forward(query_BxLxHxK, key_BxLxGxK, value_BxLxGxK)[0]


def _forward(
    query_BxLxHxK: jax.Array, key_BxLxGxK: jax.Array, value_BxLxGxK: jax.Array
) -> tuple[jax.Array, _Kept]:
    n_groups = key_BxLxGxK.shape[2]
    query = _by_group(query_BxLxHxK * query_BxLxHxK.shape[-1] ** -0.5, n_groups)
    key, value = jnp.swapaxes(key_BxLxGxK, 1, 2), jnp.swapaxes(value_BxLxGxK, 1, 2)
    mixed, lse = [], []
    for start, end in _blocks(query.shape[3]):
        scores = _scores(query, key, start, end)
        top = jnp.max(scores, axis=-1, keepdims=True)
        exponentials = jnp.exp(scores - top)
        total = jnp.sum(exponentials, axis=-1, keepdims=True)
        weighted = _product("bgqs,bgsk->bgqk", exponentials.astype(value.dtype), value[:, :, :end])
        mixed.append(_unflat(weighted / total, query.shape))
        lse.append(_unflat(top + jnp.log(total), query.shape))
    joined = jnp.concatenate(mixed, axis=3).astype(query.dtype)
    mixed_BxLxHxK = remat.named(_by_token(joined), remat.ATTENTION)
    lse = remat.named(jnp.concatenate(lse, axis=3), remat.ATTENTION)
    return mixed_BxLxHxK, (query, key, value, mixed_BxLxHxK, lse)


def _backward(kept: _Kept, gradient_BxLxHxK: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    query, key, value, mixed_BxLxHxK, lse = kept
    gradient = _by_group(gradient_BxLxHxK, key.shape[1])
    length, dtype = query.shape[3], query.dtype
    # Σ_s weight · (gradient · value_s): the term of the softmax's derivative common to all s.
    products = gradient_BxLxHxK.astype(jnp.float32) * mixed_BxLxHxK
    common = _by_group(jnp.sum(products, axis=-1, keepdims=True), key.shape[1])
    by_query = []
    # A CPU copies the left side of a product to transpose it. Transposed results keep the scores
    # off that side; the sides that remain are transposed here, all blocks at once.
    query_turned = computed_once(jnp.moveaxis(query, 4, 2))  # [B, G, K, H/G, L]
    gradient_turned = computed_once(jnp.moveaxis(gradient, 4, 2))
    by_key = by_value = jnp.zeros((*key.shape[:2], key.shape[3], length), jnp.float32)
    turned = (*key.shape[:2], key.shape[3], -1)  # [B, G, K, Q], queries of a block
    for start, end in _blocks(length):
        part = slice(start, end)
        weights = jnp.exp(_scores(query, key, start, end) - _flat(lse[:, :, :, part]))
        of_block = _flat(gradient[:, :, :, part])
        by_weight = _product("bgqk,bgsk->bgqs", of_block, value[:, :, :end])
        by_score = (weights * (by_weight - _flat(common[:, :, :, part]))).astype(dtype)
        of_queries = _product("bgqs,bgsk->bgqk", by_score, key[:, :, :end])
        by_query.append(_unflat(of_queries, query.shape))
        of_keys = _product("bgkq,bgqs->bgks", query_turned[..., part].reshape(turned), by_score)
        by_key = by_key.at[..., :end].add(of_keys)
        turned_gradient, rounded = gradient_turned[..., part].reshape(turned), weights.astype(dtype)
        of_values = _product("bgkq,bgqs->bgks", turned_gradient, rounded)
        by_value = by_value.at[..., :end].add(of_values)
    by_query_BxLxHxK = _by_token(jnp.concatenate(by_query, axis=3)) * query.shape[-1] ** -0.5
    return (
        by_query_BxLxHxK.astype(dtype),
        jnp.moveaxis(by_key, 3, 1).astype(dtype),
        jnp.moveaxis(by_value, 3, 1).astype(dtype),
    )


block_attention.defvjp(_forward, _backward)


def _blocks(length: int) -> Iterator[tuple[int, int]]:
    """The first position of each block of queries, and the one after its last."""
    size = max(_MIN_BLOCK, -(-length // _MAX_BLOCKS))
    return ((start, min(start + size, length)) for start in range(0, length, size))


def _scores(query: jax.Array, key: jax.Array, start: int, end: int) -> jax.Array:
    """float32 [B, G, Q, end]; −∞ for keys after their query."""
    scores = _product("bgqk,bgsk->bgqs", _flat(query[:, :, :, start:end]), key[:, :, :end])
    position_Q = jnp.tile(jnp.arange(start, end), query.shape[2])
    return jnp.where(jnp.arange(end) <= position_Q[:, None], scores, -jnp.inf)


def _by_group(array_BxLxHxK: jax.Array, n_groups: int) -> jax.Array:
    """[B, L, H, K] → [B, G, H/G, L, K]."""
    B, L, H, K = array_BxLxHxK.shape
    return jnp.moveaxis(array_BxLxHxK.reshape(B, L, n_groups, H // n_groups, K), 1, 3)


def _by_token(array: jax.Array) -> jax.Array:
    """[B, G, H/G, L, K] → [B, L, H, K]."""
    B, G, R, L, K = array.shape
    return jnp.moveaxis(array, 3, 1).reshape(B, L, G * R, K)


def _flat(array: jax.Array) -> jax.Array:
    """Queries of a block: [B, G, H/G, q, K] → [B, G, Q, K]."""
    return array.reshape(*array.shape[:2], -1, array.shape[-1])


def _unflat(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[B, G, Q, K] → [B, G, H/G, q, K]."""
    return array.reshape(*shape[:3], -1, array.shape[-1])
