"""What the head lets through of the gradient: its share in logits that reaches the hidden states.

The gradient of a token's loss by its logits, g = p − e_y, has V components; the model below is told
Wᵀg, which knows only of P g, g's part in the column space of W. V: rows of the head; D: hidden
width; R: its rank; p: probabilities; y: the target.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from bottleneck.model.head import HeadFactors
from bottleneck.model.loss import cross_entropy, token_losses
from bottleneck.probes.truncation import Truncation

# Singular values below this share of the largest are taken for zero: float32 gradients of that size
# are rounding.
_NEGLIGIBLE = 1e-4


def inverse_map(plain: Truncation) -> np.ndarray:
    """M = V Σ⁻¹, float64 [D, D], so that ‖Mᵀ Wᵀ g‖ = ‖P g‖; columns of negligible σ are zero.

    Args:
        plain: `truncation.plain` of the head: W = U Σ Vᵀ, V its maps.
    """
    values = plain.singular_values
    is_there = values > _NEGLIGIBLE * values[0]
    inverse: np.ndarray = plain.decode * np.where(
        is_there, 1 / np.where(is_there, values, 1.0), 0.0
    )
    return inverse


def survival(
    factors: HeadFactors,
    hidden_BxLxD: jax.Array,
    targets_BxL: jax.Array,
    weights_BxL: jax.Array,
    inverse_DxD: jax.Array,
    *,
    chunk: int,
) -> jax.Array:
    """√(Σ‖P g‖² / Σ‖g‖²) over tokens that count: the share of the norm that survives, 0 to 1.

    Nothing of size V is made: Wᵀg is the loss's gradient by the hidden state, and
    ‖g‖² = Σp² − 2·p_y + 1, where Σp² = exp(lse(2z) − 2·lse(z)) comes of the losses at z and at 2z.

    Source: Godey and Artzi 2026, "Lost in Backpropagation".

    Args:
        inverse_DxD: `inverse_map` of the head.
        weights_BxL, chunk: as for `loss.cross_entropy`.
    """
    hidden = hidden_BxLxD.astype(jnp.float32)
    sizes = dict(chunk=chunk)
    ones = jnp.ones_like(weights_BxL)
    with jax.default_matmul_precision("highest"):

        def total(hidden: jax.Array) -> jax.Array:
            return cross_entropy(factors, hidden, targets_BxL, ones, **sizes)[0]

        seen = jax.grad(total)(hidden) @ inverse_DxD
        loss = token_losses(factors, hidden, targets_BxL, **sizes)
        loss_of_double = token_losses(factors, 2 * hidden, targets_BxL, **sizes)
    square = jnp.exp(loss_of_double - 2 * loss) - 2 * jnp.exp(-loss) + 1
    kept = jnp.sum(weights_BxL[..., None] * seen**2)
    return jnp.sqrt(kept / jnp.sum(weights_BxL * square))
