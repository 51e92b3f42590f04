"""Where the training of a head of some rank starts: at random, or from a model's own head.

V: vocabulary; D: hidden width.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from bottleneck.analysis.head_training import Heads
from bottleneck.model.head import HeadFactors
from bottleneck.probes import truncation

Start = Literal["normal", "matched", "plain", "whitened"]
STARTS: tuple[Start, ...] = ("normal", "matched", "plain", "whitened")


def starting_heads(
    start: Start,
    rank: int,
    own: HeadFactors,
    cut: truncation.Truncation | None,
    n: int,
    key: jax.Array,
) -> Heads:
    """n equal heads of a rank, before training.

    "normal": N(0, 1) entries in both factors, as in the paper (appendix B). "matched": with the
    variance of a full head's logits, as `model.head.FactoredHead`. "plain", "whitened": the model's
    own head, cut.

    Args:
        cut: the truncation of that name; not used for random starts.
    """
    n_rows, width = own.rows.shape[0], (own.rows if own.basis is None else own.basis).shape[1]
    if cut is None:
        rows_std, basis_std = (
            (1.0, 1.0) if start == "normal" else ((2 / (5 * width)) ** 0.5, rank**-0.5)
        )
        of_rows, of_basis = jax.random.split(key)
        rows = rows_std * jax.random.normal(of_rows, (n_rows, rank))
        basis = basis_std * jax.random.normal(of_basis, (rank, width))
    else:
        rows, basis = cut_head(own, cut, rank)
        # Adam's steps are of one size everywhere, so both factors are brought to one size.
        scale = jnp.sqrt(_size(basis, 1) / jnp.maximum(_size(rows, 0), 1e-30))
        rows, basis = rows * scale, basis / jnp.maximum(scale, 1e-30)[:, None]
    repeat = (n, 1, 1)
    return Heads(jnp.tile(rows, repeat), jnp.tile(basis, repeat))


def cut_head(
    own: HeadFactors, cut: truncation.Truncation, rank: int
) -> tuple[jax.Array, jax.Array]:
    """A [V, rank] and B [rank, D] of a head cut to a rank."""
    decode = jnp.float32(cut.decode[:, :rank])
    inner = decode if own.basis is None else own.basis @ decode
    return own.rows @ inner, jnp.float32(cut.encode[:, :rank].T)


def _size(array: jax.Array, axis: int) -> jax.Array:
    return jnp.sqrt(jnp.mean(array**2, axis=axis))
