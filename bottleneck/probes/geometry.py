"""How hidden states lie in their space: anisotropy, moments, isotropy, from sums over tokens.

N: tokens; D: hidden width; C: E[h hᵀ]. Sums are float32 whatever the hidden states, and add up over
batches.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class UnitSum(NamedTuple):
    """Of unit vectors h/‖h‖: their sum [..., D] and how many there are [...]."""

    total: jax.Array
    number: jax.Array


def unit_sum(hidden: jax.Array, weights: jax.Array) -> UnitSum:
    """The sums over all tokens that count.

    Args:
        hidden: [..., D] hidden states; rows of zeros leave no trace in the total.
        weights: [...], 0 for a token that does not count, else 1.
    """
    hidden = hidden.astype(jnp.float32).reshape(-1, hidden.shape[-1])
    weights = weights.reshape(-1)
    norms = jnp.linalg.norm(hidden, axis=-1)
    scales = jnp.where(norms > 0, weights / jnp.where(norms > 0, norms, 1.0), 0.0)
    total = jnp.einsum("nd,n->d", hidden, scales, precision=jax.lax.Precision.HIGHEST)
    return UnitSum(total, jnp.sum(weights))


def anisotropy_of(sums: UnitSum) -> jax.Array:
    """Mean cosine similarity over all pairs of distinct tokens, float32 in [−1/(N−1), 1].

    Uses Σ_{i≠j} u_i·u_j = ‖Σ_i u_i‖² − N, so it costs O(N·D), not O(N²·D).

    Source: Godey et al. 2024, section 4.1.
    """
    square = jnp.sum(sums.total**2, axis=-1)
    return (square - sums.number) / (sums.number * (sums.number - 1))


def anisotropy(hidden: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """`anisotropy_of` hidden states [..., D]; all count where there are no weights [...]."""
    weights = jnp.ones(hidden.shape[:-1]) if weights is None else weights
    return anisotropy_of(unit_sum(hidden, weights))


class PairSum(NamedTuple):
    """Of all pairs of distinct tokens of a batch: the sum of their cosines, and their number."""

    cosines: jax.Array
    number: jax.Array


def centred_pairs(hidden: jax.Array, weights: jax.Array) -> PairSum:
    """Of hidden states [..., D] less their mean over the batch; `weights` as for `unit_sum`."""
    sums = unit_sum(hidden.astype(jnp.float32) - mean(hidden, weights), weights)
    pairs = sums.number * (sums.number - 1)
    return PairSum(jnp.sum(sums.total**2) - sums.number, pairs)


def layer_sums(hidden: jax.Array, weights: jax.Array | np.ndarray) -> jax.Array:
    """float32 [D + 3]: a batch's `unit_sum` and `centred_pairs` in one array, which adds up.

    Σ h/‖h‖ [D], the number of tokens, the sum of the cosines of pairs, the number of pairs.
    """
    weights = jnp.asarray(weights)
    units, pairs = unit_sum(hidden, weights), centred_pairs(hidden, weights)
    return jnp.concatenate([units.total, jnp.stack([units.number, pairs.cosines, pairs.number])])


def mean(hidden: jax.Array, weights: jax.Array) -> jax.Array:
    """Σ w h / Σ w, float32 [D], of hidden states [..., D]; zeros where no token counts."""
    hidden = hidden.astype(jnp.float32).reshape(-1, hidden.shape[-1])
    total = jnp.einsum("nd,n->d", hidden, weights.reshape(-1), precision=jax.lax.Precision.HIGHEST)
    return total / jnp.maximum(jnp.sum(weights), 1.0)


def mean_norm(hidden: jax.Array, weights: jax.Array) -> jax.Array:
    """Σ w ‖h‖ / Σ w, float32 scalar, of hidden states [..., D]."""
    norms = jnp.linalg.norm(hidden.astype(jnp.float32), axis=-1)
    return jnp.sum(weights * norms) / jnp.sum(weights)


def second_moment(hidden: jax.Array, weights: jax.Array) -> jax.Array:
    """C = Σ w h hᵀ / Σ w, float32 [D, D]."""
    hidden = hidden.astype(jnp.float32).reshape(-1, hidden.shape[-1])
    weighted = hidden * weights.reshape(-1, 1)
    gram = jnp.matmul(weighted.T, hidden, precision=jax.lax.Precision.HIGHEST)
    return gram / jnp.sum(weights)


def covariance(second_moment: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """C − h̄ h̄ᵀ, float64 [D, D], on the host."""
    mean = np.asarray(mean, np.float64)
    return np.asarray(second_moment, np.float64) - np.outer(mean, mean)


def iso_score(covariance: np.ndarray) -> float:
    """IsoScore: about the share of dimensions that are used evenly, 0 (one of them) to 1 (all).

    Source: Rudman et al. 2022, section 4, from the eigenvalues of the covariance.
    """
    variances = np.linalg.eigvalsh(covariance)
    n = len(variances)
    scaled = variances * np.sqrt(n) / np.linalg.norm(variances)
    defect = np.linalg.norm(scaled - 1) / np.sqrt(2 * (n - np.sqrt(n)))
    used = (n - defect**2 * (n - np.sqrt(n))) ** 2 / n**2
    return float((n * used - 1) / (n - 1))
