"""Upper bounds on the cost of truncating a head to rank r, in nats. Float64.

The loss of weights W is L(W, x, q) = logsumexp(W x) − q·W x. x: hidden state; q: distribution of
its target. W*: minimum of the mean loss; C: second moment of x; r: rank kept; D: hidden width.
"""

from __future__ import annotations

import numpy as np

from bottleneck.probes.spectral_metrics import tails


def lipschitz_bound(change_norm: np.ndarray, input_norm: np.ndarray) -> np.ndarray:
    """Returns √2·‖ΔW‖_F·‖x‖ ≥ |L(W) − L(W*)|, nats; the gradient p − q has norm at most √2.

    For truncation to rank r, ‖ΔW‖_F = √Σ_{i>r} σ_i². Source: Godey et al. 2024, theorem 5.3, with
    the constant that its O(·) omits.
    """
    return np.sqrt(2) * np.asarray(change_norm) * np.asarray(input_norm)


def plain_bound(singular_values: np.ndarray, mean_input_norm: float) -> np.ndarray:
    """Returns `lipschitz_bound` of truncating W* by its SVD: float64 [D] nats, r = 1 … D."""
    return lipschitz_bound(np.sqrt(tails(singular_values)), np.asarray(mean_input_norm))


def whitened_bound(whitened_singular_values: np.ndarray) -> np.ndarray:
    """Returns a bound on the cost of truncating W* C^{1/2}: ¼·Σ_{i>r} σ_i², nats, r = 1 … D.

    The σ_i [D] are those of W* C^{1/2}; a centred W* gives the smaller bound.
    """
    return tails(whitened_singular_values) / 4
