"""Pieces of the chunked cross-entropy: logits of some tokens and rows, and their running sums.

b: sequences of this device; L: tokens; V: rows of this device; K: columns of the head's rows.
On a TPU exponentials are relative to a reference that is known before the logits: the highest of a
few of them. So the product that makes the logits also sums them, and they never reach memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bottleneck.model.kernels.device import platform

# The logit of padded rows: their probability is exactly 0, and no NaN can arise.
_PADDING = -1e30

# Rows of a gathered block are a multiple of this, the width of a TPU's matrix unit and lanes.
ROW_UNIT = 256

# The largest valid sum of exponentials, of logits some 35 above the reference. A larger one is
# computed again, by operations whose names contain `RARELY`.
_REACH = 1e16
RARELY = "rarely"


@dataclass(frozen=True)
class Chunking:
    n_rows: int  # of the whole vocabulary, without padding
    is_full: bool  # has too many columns to gather, if they are split
    chunk: int  # tokens whose logits exist at one time


@dataclass(frozen=True)
class Layout:
    """Mesh axes over which arrays are split; none without a mesh."""

    batch: tuple[str, ...] = ()  # the tokens
    vocab: tuple[str, ...] = ()  # the head's rows
    columns: tuple[str, ...] = ()  # the head's columns

    def first_row(self, n_rows: int) -> jax.Array | int:
        """Returns the index in the whole vocabulary of this device's first row."""
        return jax.lax.axis_index(self.vocab) * n_rows if self.vocab else 0


class Logits(NamedTuple):
    values: jax.Array  # float32 [b, c, rows]
    is_target: jax.Array  # bool [b, c, rows]


class Sums(NamedTuple):
    """Running sums over logits z, float32 [b, c]."""

    reference: jax.Array
    total: jax.Array  # Σ exp(z − reference)
    target_logits: jax.Array  # 0 until the target's logit has come


def logits_of(
    projected: jax.Array,
    rows: jax.Array,
    targets: jax.Array,
    first_row: jax.Array | int,
    vocab_size: int,
    n_rows: jax.Array | int | None = None,
) -> Logits:
    """Logits of these tokens and rows; rows from `n_rows` or the vocabulary's end are masked."""
    values = jnp.einsum("blk,vk->blv", projected, rows, preferred_element_type=jnp.float32)
    index = jax.lax.broadcasted_iota(jnp.int32, (1, 1, rows.shape[0]), 2)
    is_row = first_row + index < vocab_size
    if n_rows is not None:
        is_row &= index < n_rows
    is_target = (first_row + index == targets[..., None]) & is_row
    return Logits(jnp.where(is_row, values, _PADDING), is_target)


def empty_sums(few: Callable[[], Logits], targets: jax.Array) -> Sums:
    """Sums over no logits. A TPU's reference is the highest of a `few` of those to come.

    That keeps their sum from vanishing.
    """
    zeros = jnp.zeros(targets.shape)
    reference = jnp.max(few().values, axis=-1) if platform() == "tpu" else zeros + _PADDING
    return Sums(reference, zeros, zeros)


def add_logits(sums: Sums, logits: Callable[[jax.Array], Logits], projected: jax.Array) -> Sums:
    """Adds `logits(projected)` to the sums, with a new reference if they need one."""
    values, is_target = logits(projected)
    target_logits = sums.target_logits + jnp.sum(jnp.where(is_target, values, 0.0), axis=-1)
    # Other platforms have the logits in memory, and a GPU's host would wait at a branch.
    if platform() != "tpu":
        top = jnp.maximum(sums.reference, jnp.max(values, axis=-1))
        return Sums(top, _total(sums, values, top), target_logits)

    def against_the_highest() -> tuple[jax.Array, jax.Array]:
        top = jnp.max(logits(projected).values, axis=-1)
        top = jnp.maximum(top, sums.reference + jnp.log(sums.total))
        # Without a barrier the compiler would share the product, and keep its logits in memory.
        again, top = jax.lax.optimization_barrier((projected, top))
        return top, _total(sums, logits(again).values, top)

    total = _total(sums, values, sums.reference)
    with jax.named_scope(RARELY):
        reference, total = jax.lax.cond(
            jnp.any(total > _REACH), against_the_highest, lambda: (sums.reference, total)
        )
    return Sums(reference, total, target_logits)


def _total(sums: Sums, values: jax.Array, reference: jax.Array) -> jax.Array:
    """Σ exp(z − reference) over the sums and these logits."""
    earlier = sums.total * jnp.exp(sums.reference - reference)
    return earlier + jnp.sum(jnp.exp(values - reference[..., None]), axis=-1)


def over_devices(sums: Sums, layout: Layout) -> tuple[jax.Array, jax.Array]:
    """Returns log-sum-exps and target logits over the rows of all devices."""
    if not layout.vocab:
        return sums.reference + jnp.log(sums.total), sums.target_logits
    highest = jax.lax.pmax(sums.reference, layout.vocab)
    total = jax.lax.psum(sums.total * jnp.exp(sums.reference - highest), layout.vocab)
    return highest + jnp.log(total), jax.lax.psum(sums.target_logits, layout.vocab)


def logits_gradient(logits: Logits, lse: jax.Array, weights: jax.Array, z_loss: float) -> jax.Array:
    """The derivative of w·(lse − z_y + z_loss·lse²) with respect to z."""
    scale = (weights * (1 + 2 * z_loss * lse))[..., None]
    probability = jnp.exp(logits.values - lse[..., None])
    return scale * probability - jnp.where(logits.is_target, weights[..., None], 0.0)


def gather_columns(layout: Layout, shard: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Gathers all columns of the rows, in the type of the products."""
    shard = shard.astype(dtype)
    if not layout.columns:
        return shard
    return jax.lax.all_gather(shard, layout.columns, axis=1, tiled=True)


def scatter_columns(layout: Layout, gradient: jax.Array) -> jax.Array:
    """Sums gradients of whole rows over the devices that share them; each gets its columns."""
    if not layout.columns:
        return gradient
    return jax.lax.psum_scatter(gradient, layout.columns, scatter_dimension=1, tiled=True)


def sum_others(layout: Layout, gradient: jax.Array) -> jax.Array:
    """Sums over the devices with other tokens that `scatter_columns` left out."""
    others = tuple(axis for axis in layout.batch if axis not in layout.columns)
    return jax.lax.psum(gradient, others)
