"""Upper bounds on what truncating a head to rank r can cost.

The loss of weights W on an example is L(W, x, q) = logsumexp(W x) − q·W x, in nats: x is the hidden
state, q the distribution of its target. W* minimises the mean loss ℓ over the examples; C is the
second moment of x. All arithmetic is float64. r: rank kept; D: hidden width.
"""

from __future__ import annotations

import numpy as np

from bottleneck.probes.spectral_metrics import tails


def lipschitz_bound(change_norm: np.ndarray, input_norm: np.ndarray) -> np.ndarray:
    """√2·‖ΔW‖_F·‖x‖ ≥ |L(W) − L(W*)| for any two weights, as the gradient p − q is at most √2 long.

    With a truncation to rank r, ‖ΔW‖_F = √Σ_{i>r} σ_i², it is theorem 5.3 of Godey et al. 2024 with
    the constant that its O(·) leaves out.
    """
    return np.sqrt(2) * np.asarray(change_norm) * np.asarray(input_norm)


def plain_bound(singular_values: np.ndarray, mean_input_norm: float) -> np.ndarray:
    """The most that cutting W* to rank r by its SVD can cost, r = 1 … D: see `lipschitz_bound`."""
    return lipschitz_bound(np.sqrt(tails(singular_values)), np.asarray(mean_input_norm))


def whitened_bound(whitened_singular_values: np.ndarray) -> np.ndarray:
    """The most that cutting W* C^{1/2} to rank r by its SVD can cost: ¼·Σ_{i>r} σ_i², r = 1 … D.

    Args:
        whitened_singular_values: σ_i(W* C^{1/2}), of the matrix that is cut, best a centred one.
    """
    return tails(whitened_singular_values) / 4
