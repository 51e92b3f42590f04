"""The LM head, whose rank is this project's subject: logits = W h, W = A @ B of rank at most R.

V: rows of the head, padded; D: hidden width; R: rank; W: [V, D]; A: [V, R]; B: [R, D].
Whatever looks at a head takes its `HeadFactors`, and nothing forms W where A and B will do.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from flax import nnx

from bottleneck.config import ModelConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HeadFactors:
    """A head as a product: W = rows @ basis, or W = rows if basis is None.

    rows: [V, R] (A), or [V, D] (W) for a full head.
    basis: [R, D] (B), or None.
    n_rows: the number of unpadded rows, which alone have a probability; 0 means all.
    """

    rows: jax.Array
    basis: jax.Array | None = None
    n_rows: int = field(default=0, metadata={"static": True})

    def __post_init__(self) -> None:
        if self.n_rows == 0:
            object.__setattr__(self, "n_rows", self.rows.shape[0])

    @property
    def width(self) -> int:
        """D, the width of the hidden states."""
        return (self.rows if self.basis is None else self.basis).shape[-1]

    @property
    def rank(self) -> int:
        """The upper bound of the rank of W: the number of columns of `rows`."""
        return self.rows.shape[-1]

    @property
    def is_full(self) -> bool:
        return self.basis is None

    def matrix(self) -> jax.Array:
        """Returns W [V, D], which must fit in memory."""
        if self.basis is None:
            return self.rows
        return jnp.matmul(self.rows, self.basis, precision="highest")

    def project(self, hidden: jax.Array) -> jax.Array:
        """Projects hidden states [..., D] to the vectors [..., R] that `rows` multiply."""
        return hidden if self.basis is None else hidden @ self.basis.T.astype(hidden.dtype)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Returns float32 logits [..., V], padded rows included, which must fit in memory."""
        projected = self.project(hidden)
        return jnp.einsum(
            "...r,vr->...v",
            projected,
            self.rows.astype(projected.dtype),
            preferred_element_type=jnp.float32,
        )


class Embedding(nnx.Module):
    """A table [V, D] of V·D parameters."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.n_rows = config.vocab_size
        shape = (config.padded_vocab_size, config.d_model)
        rows = config.weight_std * jax.random.normal(rngs.params(), shape)
        self.rows = nnx.Param(rows, axes=("vocab", "embed"))

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Returns the rows [..., D] of these tokens."""
        return self.rows[...][tokens]


class FullHead(Embedding):
    """W [V, D], also the embedding of a tied model; 2·V·D FLOPs per token forward; rank ≤ D."""

    def factors(self) -> HeadFactors:
        return HeadFactors(self.rows[...], None, self.n_rows)


class FactoredHead(nnx.Module):
    """A [V, R] @ B [R, D]: R·(V + D) parameters, 2·R·(V + D) FLOPs per token forward; rank ≤ R.

    In a tied model it is the embedding too, which then also has rank R.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        assert config.head_rank is not None
        rank, self.n_rows = config.head_rank, config.vocab_size
        if config.head_init == "normal":
            rows_std = basis_std = 1.0
        else:
            # A has the entries of a full head, and B keeps the norm of the hidden states. So A @ B
            # has the variance of a full head, and Adam moves logits and directions equally fast.
            rows_std, basis_std = config.weight_std, rank**-0.5
        rows = rows_std * jax.random.normal(rngs.params(), (config.padded_vocab_size, rank))
        basis = basis_std * jax.random.normal(rngs.params(), (rank, config.d_model))
        self.rows = nnx.Param(rows, axes=("vocab", "rank"))
        self.basis = nnx.Param(basis, axes=("rank", "embed"))

    def factors(self) -> HeadFactors:
        return HeadFactors(self.rows[...], self.basis[...], self.n_rows)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Returns the rows [..., D] of A @ B for these tokens."""
        return self.rows[...][tokens] @ self.basis[...]


def make_head(config: ModelConfig, rngs: nnx.Rngs) -> FullHead | FactoredHead:
    """Returns the head that the config describes."""
    return (FullHead if config.head_rank is None else FactoredHead)(config, rngs)
