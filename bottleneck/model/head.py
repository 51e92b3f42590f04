"""The LM head, whose rank is this project's subject: logits = W h, W = A @ B of rank at most R.

V: rows of the head, padded; D: hidden width; R: rank; W: [V, D]; A: [V, R]; B: [R, D].
Whatever looks at a head takes its `HeadFactors`, and nothing forms W where A and B will do.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from bottleneck.config import ModelConfig


class HeadFactors(NamedTuple):
    """A head as a product: W = rows @ basis, or W = rows where basis is None.

    rows: [V, R] (A), or [V, D] (W) for a full head.
    basis: [R, D] (B), or None.
    """

    rows: jax.Array
    basis: jax.Array | None

    def project(self, hidden: jax.Array) -> jax.Array:
        """The vectors [..., R] that the rows are multiplied with, from hidden states [..., D]."""
        return hidden if self.basis is None else hidden @ self.basis.T.astype(hidden.dtype)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32 [..., V] logits, padded rows included, for inputs small enough to hold them."""
        projected = self.project(hidden)
        return jnp.einsum(
            "...r,vr->...v",
            projected,
            self.rows.astype(projected.dtype),
            preferred_element_type=jnp.float32,
        )


class FullHead(nnx.Module):
    """W [V, D]: V·D parameters, twice that in FLOPs a token forward; rank ≤ D."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        shape = (config.padded_vocab_size, config.d_model)
        rows = config.weight_std * jax.random.normal(rngs.params(), shape)
        self.rows = nnx.Param(rows, axes=("vocab", "embed"))

    def factors(self) -> HeadFactors:
        return HeadFactors(self.rows[...], None)


class FactoredHead(nnx.Module):
    """A [V, R] @ B [R, D]: R·(V + D) parameters, twice that in FLOPs a token forward; rank ≤ R."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        assert config.head_rank is not None
        rank = config.head_rank
        if config.head_init == "normal":
            rows_std = basis_std = 1.0
        else:
            # A has the entries of a full head and B keeps the norm of the hidden states, so that
            # A @ B has the variance of a full head's entries, and Adam's steps of one size move
            # logits and directions at comparable speed.
            rows_std, basis_std = config.weight_std, rank**-0.5
        rows = rows_std * jax.random.normal(rngs.params(), (config.padded_vocab_size, rank))
        basis = basis_std * jax.random.normal(rngs.params(), (rank, config.d_model))
        self.rows = nnx.Param(rows, axes=("vocab", "rank"))
        self.basis = nnx.Param(basis, axes=("rank", "embed"))

    def factors(self) -> HeadFactors:
        return HeadFactors(self.rows[...], self.basis[...])


class TiedHead(FullHead):
    """A full head that is the embedding too: V·D parameters for both."""

    def embed(self, tokens: jax.Array) -> jax.Array:
        """The rows [..., D] of these tokens."""
        return self.rows[...][tokens]


class TiedFactoredHead(FactoredHead):
    """A factored head that is the embedding too, also of rank R: R·(V + D) parameters for both."""

    def embed(self, tokens: jax.Array) -> jax.Array:
        """The rows [..., D] of A @ B of these tokens."""
        return self.rows[...][tokens] @ self.basis[...]


def make_head(config: ModelConfig, rngs: nnx.Rngs) -> FullHead | FactoredHead:
    """The head that the config describes."""
    if config.head_rank is None:
        return (TiedHead if config.tie_embeddings else FullHead)(config, rngs)
    return (TiedFactoredHead if config.tie_embeddings else FactoredHead)(config, rngs)
