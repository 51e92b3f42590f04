"""Gradient survival: the fraction of the gradient's norm that the head passes back.

The gradient of a token's loss with respect to its logits is g = p − e_y. The layers below see only
Wᵀg, which depends only on P g, the projection of g onto the column space of W. V: rows of the head;
D: hidden width; p: probabilities; y: the target.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bottleneck.model.head import HeadFactors
from bottleneck.model.loss import cross_entropy, token_losses
from bottleneck.probes.truncation import Truncation

# Singular values below this fraction of the largest count as zero: float32 gradients of that size
# are rounding errors.
_NEGLIGIBLE = 1e-4


def inverse_map(plain: Truncation) -> np.ndarray:
    """Returns M = V Σ⁻¹, float64 [D, D], so that ‖Mᵀ Wᵀ g‖ = ‖P g‖.

    W = U Σ Vᵀ, and V are the maps of its plain truncation. Columns of negligible singular values
    are zero.
    """
    values = plain.singular_values
    counts = values > _NEGLIGIBLE * values[0]
    inverse: np.ndarray = plain.decode * np.where(counts, 1 / np.where(counts, values, 1.0), 0.0)
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
    """Returns √(Σ‖P g‖² / Σ‖g‖²), float32 in [0, 1], over tokens of weight 1.

    No array has size V: Wᵀg is the gradient with respect to the hidden state. ‖g‖² is
    Σp² − 2·p_y + 1, and Σp² = exp(lse(2z) − 2·lse(z)) follows from the losses at logits z and 2z.

    Args:
        weights_BxL, chunk: see `loss.cross_entropy`.
        inverse_DxD: `inverse_map` of the head.
    Source: Godey and Artzi 2026, "Lost in Backpropagation".
    """
    hidden = hidden_BxLxD.astype(jnp.float32)
    ones = jnp.ones_like(weights_BxL)
    with jax.default_matmul_precision("highest"):
        total = functools.partial(cross_entropy, chunk=chunk)
        gradient, _ = jax.grad(total, 1, has_aux=True)(factors, hidden, targets_BxL, ones)
        seen = gradient @ inverse_DxD
        loss = token_losses(factors, hidden, targets_BxL, chunk=chunk)
        loss_of_double = token_losses(factors, 2 * hidden, targets_BxL, chunk=chunk)
    square = jnp.exp(loss_of_double - 2 * loss) - 2 * jnp.exp(-loss) + 1
    kept = jnp.sum(weights_BxL[..., None] * seen**2)
    return jnp.sqrt(kept / jnp.sum(weights_BxL * square))
