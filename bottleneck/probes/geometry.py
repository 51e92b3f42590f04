"""Geometry of hidden states: anisotropy, moments and isotropy, from sums over tokens.

N: tokens; D: hidden width; C: E[h hᵀ]. Sums are float32 for any dtype of hidden states, and add up
over batches. Weights are 1 for a token that counts, otherwise 0.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class UnitSum(NamedTuple):
    """The sum [..., D] of unit vectors h/‖h‖ and their number [...]."""

    total: jax.Array | np.ndarray
    number: jax.Array | np.ndarray


def unit_sum(hidden: jax.Array, weights: jax.Array) -> UnitSum:
    """Returns the unit sum of hidden states [..., D] with weights [...]; zero rows add nothing."""
    hidden = hidden.astype(jnp.float32).reshape(-1, hidden.shape[-1])
    weights = weights.reshape(-1)
    norms = jnp.linalg.norm(hidden, axis=-1)
    scales = jnp.where(norms > 0, weights / jnp.where(norms > 0, norms, 1.0), 0.0)
    total = jnp.einsum("nd,n->d", hidden, scales, precision=jax.lax.Precision.HIGHEST)
    return UnitSum(total, jnp.sum(weights))


def anisotropy_of(sums: UnitSum) -> jax.Array:
    """Returns the mean cosine similarity over pairs of distinct tokens, float32 in [−1/(N−1), 1].

    Uses Σ_{i≠j} u_i·u_j = ‖Σ_i u_i‖² − N, so it costs O(N·D), not O(N²·D).
    Source: Godey et al. 2024, section 4.1.
    """
    square = jnp.sum(sums.total**2, axis=-1)
    return (square - sums.number) / (sums.number * (sums.number - 1))


def anisotropy(hidden: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """Returns `anisotropy_of` hidden states [..., D] with weights [...]; None counts all tokens."""
    weights = jnp.ones(hidden.shape[:-1]) if weights is None else weights
    return anisotropy_of(unit_sum(hidden, weights))


def layer_sums(hidden: jax.Array, weights: jax.Array | np.ndarray) -> jax.Array:
    """Returns one layer's sums over a batch, float32 [D + 3]; they add up over batches.

    They are Σ h/‖h‖ [D] and the number of tokens, then the sum of cosines over pairs of centred
    states and the number of pairs. Centred states have the mean over the batch subtracted.
    """
    weights = jnp.asarray(weights)
    units = unit_sum(hidden, weights)
    centred = unit_sum(hidden.astype(jnp.float32) - mean(hidden, weights), weights)
    cosines = jnp.sum(centred.total**2) - centred.number
    pairs = units.number * (units.number - 1)
    return jnp.concatenate([units.total, jnp.stack([units.number, cosines, pairs])])


def layer_anisotropy(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns anisotropy and centred anisotropy, float64 [layers], from `layer_sums` [layers, D+3].

    The second is over pairs within a batch.
    """
    raw = anisotropy_of(UnitSum(sums[:, :-3], sums[:, -3]))
    return np.asarray(raw, np.float64), sums[:, -2].astype(np.float64) / sums[:, -1]


def mean(hidden: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns Σ w h / Σ w, float32 [D], for hidden states [..., D]; zeros if no token counts."""
    hidden = hidden.astype(jnp.float32).reshape(-1, hidden.shape[-1])
    total = jnp.einsum("nd,n->d", hidden, weights.reshape(-1), precision=jax.lax.Precision.HIGHEST)
    return total / jnp.maximum(jnp.sum(weights), 1.0)


def mean_norm(hidden: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns Σ w ‖h‖ / Σ w, float32 scalar, for hidden states [..., D]."""
    norms = jnp.linalg.norm(hidden.astype(jnp.float32), axis=-1)
    return jnp.sum(weights * norms) / jnp.sum(weights)


def second_moment(hidden: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns C = Σ w h hᵀ / Σ w, float32 [D, D], for hidden states [..., D]."""
    hidden = hidden.astype(jnp.float32).reshape(-1, hidden.shape[-1])
    weighted = hidden * weights.reshape(-1, 1)
    gram = jnp.matmul(weighted.T, hidden, precision=jax.lax.Precision.HIGHEST)
    return gram / jnp.sum(weights)


def covariance(second_moment: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Returns C − h̄ h̄ᵀ, float64 [D, D], on the host."""
    mean = np.asarray(mean, np.float64)
    return np.asarray(second_moment, np.float64) - np.outer(mean, mean)


def iso_score(covariance: np.ndarray) -> float:
    """Returns the IsoScore: roughly the fraction of dimensions used evenly, 0 (one) to 1 (all).

    Source: Rudman et al. 2022, section 4, from the covariance [D, D] of hidden states.
    """
    variances = np.linalg.eigvalsh(covariance)
    n = len(variances)
    scaled = variances * np.sqrt(n) / np.linalg.norm(variances)
    defect = np.linalg.norm(scaled - 1) / np.sqrt(2 * (n - np.sqrt(n)))
    used = (n - defect**2 * (n - np.sqrt(n))) ** 2 / n**2
    return float((n * used - 1) / (n - 1))
