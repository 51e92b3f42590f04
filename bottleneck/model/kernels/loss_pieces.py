"""Pieces of the chunked cross-entropy: logits of some tokens and rows, and their running sums.

b: sequences of this device; L: tokens; V: rows of this device; K: columns of the head's rows.
On a TPU exponentials are relative to a reference that is known before the logits: the highest of a
few of them. So the product that makes the logits also sums them, and they never reach memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

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

# float32 [b, L] each: the log-sum-exp of every token's logits, and the logit of its target.
Found = tuple[jax.Array, jax.Array]
# `Found`, and the gradients with respect to this device's `projected` and `rows`.
Gradients = tuple[Found, tuple[jax.Array, jax.Array]]


class Share(NamedTuple):
    """One device's tokens and its part of the head."""

    projected: jax.Array  # [b, L, K]
    rows: jax.Array  # [V, K], or its part of the columns
    targets: jax.Array  # [b, L], in the whole vocabulary
    weights: Any = None  # float32 [b, L]; only `statistics` does without


@dataclass(frozen=True)
class LossPlan:
    """Facts of a loss that are known when it is traced."""

    n_rows: int  # of the whole vocabulary, without padding
    is_full: bool  # the head has too many columns to gather, if they are split
    chunk: int  # tokens whose logits exist at one time
    z_loss: float = 0.0
    # Mesh axes over which arrays are split; none without a mesh.
    batch: tuple[str, ...] = ()  # the tokens
    vocab: tuple[str, ...] = ()  # the head's rows
    columns: tuple[str, ...] = ()  # the head's columns

    def first_row(self, n_rows: int) -> jax.Array | int:
        """Returns the index in the whole vocabulary of this device's first row."""
        return jax.lax.axis_index(self.vocab) * n_rows if self.vocab else 0

    def gather(self, shard: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """Gathers all columns of the rows, in the type of the products."""
        shard = shard.astype(dtype)
        if not self.columns:
            return shard
        return jax.lax.all_gather(shard, self.columns, axis=1, tiled=True)

    def scatter(self, gradient: jax.Array) -> jax.Array:
        """Sums gradients of whole rows over the devices that share them; each gets its columns."""
        if not self.columns:
            return gradient
        return jax.lax.psum_scatter(gradient, self.columns, scatter_dimension=1, tiled=True)

    def sum_others(self, gradient: jax.Array) -> jax.Array:
        """Sums over the devices with other tokens that `scatter` left out."""
        others = tuple(axis for axis in self.batch if axis not in self.columns)
        return jax.lax.psum(gradient, others)


class Logits(NamedTuple):
    values: jax.Array  # float32 [b, c, rows]
    is_target: jax.Array  # bool [b, c, rows]

    def gradient(self, lse: jax.Array, weights: jax.Array, z_loss: float) -> jax.Array:
        """The derivative of w·(lse − z_y + z_loss·lse²) with respect to z."""
        scale = (weights * (1 + 2 * z_loss * lse))[..., None]
        probability = jnp.exp(self.values - lse[..., None])
        return scale * probability - jnp.where(self.is_target, weights[..., None], 0.0)


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


class Sums(NamedTuple):
    """Running sums over logits z, float32 [b, c]."""

    reference: jax.Array
    total: jax.Array  # Σ exp(z − reference)
    target_logits: jax.Array  # 0 until the target's logit has come

    @classmethod
    def empty(cls, few: Callable[[], Logits], targets: jax.Array) -> Sums:
        """Sums over no logits. A TPU's reference is the highest of a `few` of those to come."""
        zeros = jnp.zeros(targets.shape)
        # A reference far above all logits would let their sum vanish.
        reference = jnp.max(few().values, axis=-1) if platform() == "tpu" else zeros + _PADDING
        return cls(reference, zeros, zeros)

    def add(self, logits: Callable[[jax.Array], Logits], projected: jax.Array) -> Sums:
        """Adds `logits(projected)` to the sums, with a new reference if they need one."""
        values, is_target = logits(projected)
        target_logits = self.target_logits + jnp.sum(jnp.where(is_target, values, 0.0), axis=-1)
        # Other platforms have the logits in memory, and a GPU's host would wait at a branch.
        if platform() != "tpu":
            top = jnp.maximum(self.reference, jnp.max(values, axis=-1))
            return Sums(top, self._total(values, top), target_logits)

        def against_the_highest() -> tuple[jax.Array, jax.Array]:
            top = jnp.max(logits(projected).values, axis=-1)
            top = jnp.maximum(top, self.reference + jnp.log(self.total))
            # Without a barrier the compiler would share the product, and keep its logits in memory.
            again, top = jax.lax.optimization_barrier((projected, top))
            return top, self._total(logits(again).values, top)

        total = self._total(values, self.reference)
        with jax.named_scope(RARELY):
            reference, total = jax.lax.cond(
                jnp.any(total > _REACH), against_the_highest, lambda: (self.reference, total)
            )
        return Sums(reference, total, target_logits)

    def _total(self, values: jax.Array, reference: jax.Array) -> jax.Array:
        """Σ exp(z − reference) over the sums and these logits."""
        earlier = self.total * jnp.exp(self.reference - reference)
        return earlier + jnp.sum(jnp.exp(values - reference[..., None]), axis=-1)

    def over_devices(self, plan: LossPlan) -> Found:
        """Returns log-sum-exps and target logits over the rows of all devices."""
        if not plan.vocab:
            return self.reference + jnp.log(self.total), self.target_logits
        highest = jax.lax.pmax(self.reference, plan.vocab)
        total = jax.lax.psum(self.total * jnp.exp(self.reference - highest), plan.vocab)
        return highest + jnp.log(total), jax.lax.psum(self.target_logits, plan.vocab)


def scan_chunks(
    one_chunk: Callable[..., Any], start: Any, arrays: tuple[jax.Array, ...], chunk: int, axis: int
) -> tuple[Any, Any]:
    """Returns (final carry, joined results) of a scan over chunks of the arrays along an axis.

    The last chunk is padded with zeros; the results have the length of the arrays again.
    """
    length = arrays[0].shape[axis]
    chunk = min(length, max(1, chunk))

    def split(array: jax.Array) -> jax.Array:
        before, after = array.shape[:axis], array.shape[axis + 1 :]
        padded = jnp.pad(array, [(0, -length % chunk * (i == axis)) for i in range(array.ndim)])
        return jnp.moveaxis(padded.reshape(*before, -1, chunk, *after), axis, 0)

    def join(array: jax.Array) -> jax.Array:
        moved = jnp.moveaxis(array, 0, axis)
        joined = moved.reshape(*moved.shape[:axis], -1, *moved.shape[axis + 2 :])
        return joined[(*[slice(None)] * axis, slice(length))]

    carried, results = jax.lax.scan(one_chunk, start, tuple(map(split, arrays)))
    return carried, tuple(map(join, results))
