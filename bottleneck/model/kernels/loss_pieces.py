"""Pieces of the chunked cross-entropy: logits of some tokens and rows, and their running sums.

b: sequences of this device; L: tokens; V: rows of this device; K: columns of the head's rows.
On a TPU exponentials are taken against a reference that is known before the logits are: the highest
of a few of them. So a product's logits are summed while it makes them, and never reach memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bottleneck.parallel.mesh import platform

# Added to the logits of padded rows: their probability is 0 to the last bit, and no NaN can arise.
_PADDING = -1e30

# Rows of a gathered block are a multiple of this, the width of a TPU's matrix unit and lanes.
ROW_UNIT = 256

# Sums of exponentials up to here, of logits some 35 above the reference, are taken as they are.
# What is done beyond has the other name in the names of its operations.
_REACH = 1e16
RARELY = "rarely"


@dataclass(frozen=True)
class Chunking:
    n_rows: int  # of the whole vocabulary; rows from here on are padding
    is_full: bool  # too many columns to be whole on a device, where they are split
    chunk: int  # tokens whose logits for all rows of the device exist at one time


@dataclass(frozen=True)
class Layout:
    """Mesh axes over which this device's share is one of several; none without a mesh."""

    batch: tuple[str, ...] = ()  # of the tokens
    vocab: tuple[str, ...] = ()  # of the head's rows
    columns: tuple[str, ...] = ()  # of the head's columns

    def first_row(self, n_rows: int) -> jax.Array | int:
        """Of this device's rows, in the whole vocabulary."""
        return jax.lax.axis_index(self.vocab) * n_rows if self.vocab else 0


class Logits(NamedTuple):
    values: jax.Array  # float32 [b, c, rows]
    is_target: jax.Array  # bool [b, c, rows]


class Sums(NamedTuple):
    """Of the logits so far, float32 [b, c]."""

    reference: jax.Array
    total: jax.Array  # Σ exp(z − reference)
    target_logits: jax.Array  # 0 where the target is not among them


def logits_of(
    projected: jax.Array,
    rows: jax.Array,
    targets: jax.Array,
    first_row: jax.Array | int,
    vocab_size: int,
    n_rows: jax.Array | int | None = None,
) -> Logits:
    """Of these tokens and rows; those from `n_rows` on, and past the vocabulary, are masked."""
    values = jnp.einsum("blk,vk->blv", projected, rows, preferred_element_type=jnp.float32)
    index = jax.lax.broadcasted_iota(jnp.int32, (1, 1, rows.shape[0]), 2)
    is_row = first_row + index < vocab_size
    if n_rows is not None:
        is_row &= index < n_rows
    is_target = (first_row + index == targets[..., None]) & is_row
    return Logits(jnp.where(is_row, values, _PADDING), is_target)


def empty_sums(few: Callable[[], Logits], targets: jax.Array) -> Sums:
    """Sums of no logits. A TPU's reference is the highest of a few that are among those to come.

    So that their sum cannot vanish.
    """
    zeros = jnp.zeros(targets.shape)
    reference = jnp.max(few().values, axis=-1) if platform() == "tpu" else zeros + _PADDING
    return Sums(reference, zeros, zeros)


def add_logits(sums: Sums, logits: Callable[[jax.Array], Logits], projected: jax.Array) -> Sums:
    """The sums with those of `logits(projected)`, against another reference where it must be."""
    values, is_target = logits(projected)
    target_logits = sums.target_logits + jnp.sum(jnp.where(is_target, values, 0.0), axis=-1)
    if platform() != "tpu":  # others have the logits in memory, and a GPU's host waits at a branch
        top = jnp.maximum(sums.reference, jnp.max(values, axis=-1))
        return Sums(top, _total(sums, values, top), target_logits)

    def against_the_highest() -> tuple[jax.Array, jax.Array]:
        top = jnp.max(logits(projected).values, axis=-1)
        top = jnp.maximum(top, sums.reference + jnp.log(sums.total))
        # Two products, each with its sums: the compiler would make one, and keep its logits.
        again, top = jax.lax.optimization_barrier((projected, top))
        return top, _total(sums, logits(again).values, top)

    total = _total(sums, values, sums.reference)
    with jax.named_scope(RARELY):
        reference, total = jax.lax.cond(
            jnp.any(total > _REACH), against_the_highest, lambda: (sums.reference, total)
        )
    return Sums(reference, total, target_logits)


def _total(sums: Sums, values: jax.Array, reference: jax.Array) -> jax.Array:
    """Σ exp(z − reference) of the sums and these logits."""
    earlier = sums.total * jnp.exp(sums.reference - reference)
    return earlier + jnp.sum(jnp.exp(values - reference[..., None]), axis=-1)


def over_devices(sums: Sums, layout: Layout) -> tuple[jax.Array, jax.Array]:
    """Log-sum-exp and target logit over the rows of all devices."""
    if not layout.vocab:
        return sums.reference + jnp.log(sums.total), sums.target_logits
    highest = jax.lax.pmax(sums.reference, layout.vocab)
    total = jax.lax.psum(sums.total * jnp.exp(sums.reference - highest), layout.vocab)
    return highest + jnp.log(total), jax.lax.psum(sums.target_logits, layout.vocab)


def logits_gradient(logits: Logits, lse: jax.Array, weights: jax.Array, z_loss: float) -> jax.Array:
    """d/dz of w·(lse − z_y + z_loss·lse²): 1 + 2·z_loss·lse times the softmax, less the target."""
    scale = (weights * (1 + 2 * z_loss * lse))[..., None]
    probability = jnp.exp(logits.values - lse[..., None])
    return scale * probability - jnp.where(logits.is_target, weights[..., None], 0.0)


def gather_columns(layout: Layout, shard: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Rows made whole, sent in the type of the products."""
    shard = shard.astype(dtype)
    if not layout.columns:
        return shard
    return jax.lax.all_gather(shard, layout.columns, axis=1, tiled=True)


def scatter_columns(layout: Layout, gradient: jax.Array) -> jax.Array:
    """Of whole rows' gradients, the sum over the devices that share them: each gets its columns."""
    if not layout.columns:
        return gradient
    return jax.lax.psum_scatter(gradient, layout.columns, scatter_dimension=1, tiled=True)


def sum_others(layout: Layout, gradient: jax.Array) -> jax.Array:
    """The sum over the devices with other tokens that `scatter_columns` has left out."""
    others = tuple(axis for axis in layout.batch if axis not in layout.columns)
    return jax.lax.psum(gradient, others)
