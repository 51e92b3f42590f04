"""What is made of singular values, or of eigenvalues: entropies, ranks, errors. float64, host.

σ: singular values, descending, D of them, zeros included; p: what they are normalised to. D ≥ 2.
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


def participation_ratio(singular_values: np.ndarray) -> float:
    """(Σσ²)² / Σσ⁴, between 1 and D: how many directions of equal size would spread as wide."""
    squares = singular_values**2
    return float(np.sum(squares) ** 2 / np.sum(squares**2))


def tail_exponent(singular_values: np.ndarray) -> float:
    """a of σ_i ∝ i^−a, i from 1, by least squares in log-log over the middle of the spectrum.

    Of the R values that are not zero, the middle is R/8 < i ≤ 3R/4, evenly weighted in log i:
    before it stand a few outliers, after it a spectrum of random entries falls off whatever the
    head has learned. NaN where the middle has fewer than three.
    """
    singular_values = singular_values[singular_values > 0]
    index = np.arange(1, len(singular_values) + 1)
    middle = (index > len(index) / 8) & (index <= 3 * len(index) / 4)
    if np.sum(middle) < 3:
        return float("nan")
    x, y = np.log(index[middle]), np.log(singular_values[middle])
    slope = np.polyfit(x, y, 1, w=np.sqrt(1 / index[middle]))[0]
    return float(-slope)


def tails(singular_values: np.ndarray) -> np.ndarray:
    """Σ_{j>i} σ_j² at index i: float64 [D], the last 0. Summed from the small end."""
    squares = np.asarray(singular_values, np.float64) ** 2
    return np.append(np.cumsum(squares[:0:-1])[::-1], 0.0)


def w_error(singular_values: np.ndarray) -> np.ndarray:
    """√(Σ_{j>i} σ_j² / Σσ²) at index i: float64 [D], the error of the best copy of rank i + 1."""
    return np.sqrt(tails(singular_values) / np.sum(singular_values**2))


def _kl_from_uniform(masses: np.ndarray) -> float:
    p = masses / np.sum(masses)
    present = p[p > 0]  # 0·log 0 = 0
    return float(np.log(len(p)) + np.sum(present * np.log(present)))
