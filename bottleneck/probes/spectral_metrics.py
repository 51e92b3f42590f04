"""What is made of a head's singular values: entropies, ranks, errors. float64 on the host.

σ: singular values, descending, D of them, zeros included; p: what they are normalised to.
"""

from __future__ import annotations

import numpy as np


def singular_entropy(singular_values: np.ndarray) -> float:
    """KL(p‖u) = log D + Σ p log p in nats, p ∝ σ², u uniform over D: 0 if flat, log D if one.

    Source: Godey et al. 2024, section 5.1, where the normalisation is left open; that it is of
    squares follows from the paper's own figures 4 and 5.
    """
    return _kl_from_uniform(singular_values**2)


def linear_singular_entropy(singular_values: np.ndarray) -> float:
    """The same with p ∝ σ."""
    return _kl_from_uniform(singular_values)


def effective_rank(singular_values: np.ndarray) -> float:
    """exp of the entropy of p ∝ σ, between 1 and D. Source: Roy and Vetterli 2007."""
    return len(singular_values) * float(np.exp(-_kl_from_uniform(singular_values)))


def stable_rank(singular_values: np.ndarray) -> float:
    """Σσ² / σ₀², between 1 and D."""
    return float(np.sum(singular_values**2) / singular_values[0] ** 2)


def w_error(singular_values: np.ndarray) -> np.ndarray:
    """float64 [D]: at index i, √(Σ_{j>i} σ_j² / Σσ²), the error of the best copy of rank i + 1.

    Summed from the small end, so that small errors keep their digits.
    """
    squares = singular_values**2
    tails = np.append(np.cumsum(squares[::-1])[::-1][1:], 0.0)
    return np.sqrt(tails / np.sum(squares))


def _kl_from_uniform(masses: np.ndarray) -> float:
    p = masses / np.sum(masses)
    present = p[p > 0]  # 0·log 0 = 0
    return float(np.log(len(p)) + np.sum(present * np.log(present)))
