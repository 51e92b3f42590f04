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
        """float32 [..., V] logits, padded rows included; only for inputs small enough to hold them."""
        projected = self.project(hidden)
        return jnp.einsum(
            "...r,vr->...v",
            projected,
            self.rows.astype(projected.dtype),
            preferred_element_type=jnp.float32,
        )
