"""Entropies, ranks and errors of singular values, in float64 on the host.

σ: D ≥ 2 singular values, descending, zeros included; p: σ or σ² normalised to sum 1.
"""

from __future__ import annotations

import numpy as np


def singular_entropy(singular_values: np.ndarray) -> float:
    """Returns KL(p‖u) = log D + Σ p log p, nats, p ∝ σ², u uniform: 0 if flat, log D at rank 1.

    Source: Godey et al. 2024, section 5.1. It leaves the normalisation open; its figures 4 and 5
    imply squares.
    """
    return _kl_from_uniform(singular_values**2)


def linear_singular_entropy(singular_values: np.ndarray) -> float:
    """Returns the singular entropy with p ∝ σ, nats."""
    return _kl_from_uniform(singular_values)


def effective_rank(singular_values: np.ndarray) -> float:
    """Returns exp of the entropy of p ∝ σ, 1 to D. Source: Roy and Vetterli 2007."""
    return len(singular_values) * float(np.exp(-_kl_from_uniform(singular_values)))


def stable_rank(singular_values: np.ndarray) -> float:
    """Returns Σσ² / σ₀², 1 to D. Source: Rudelson and Vershynin 2007."""
    return float(np.sum(singular_values**2) / singular_values[0] ** 2)


def participation_ratio(singular_values: np.ndarray) -> float:
    """Returns (Σσ²)² / Σσ⁴, 1 to D: the number of equal directions with the same spread."""
    squares = singular_values**2
    return float(np.sum(squares) ** 2 / np.sum(squares**2))


def tail_exponent(singular_values: np.ndarray) -> float:
    """Returns a of σ_i ∝ i^−a, i from 1, by least squares in log-log over the middle.

    With R nonzero values the middle is R/8 < i ≤ 3R/4, evenly weighted in log i. Before it are a
    few outliers; after it even random matrices fall off. NaN if it has fewer than three values.
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
    """Returns Σ_{j>i} σ_j² at index i, float64 [D]; the last is 0. It sums from the small end."""
    squares = np.asarray(singular_values, np.float64) ** 2
    return np.append(np.cumsum(squares[:0:-1])[::-1], 0.0)


def w_error(singular_values: np.ndarray) -> np.ndarray:
    """Returns √(Σ_{j>i} σ_j² / Σσ²) at index i, float64 [D]: the relative error at rank i + 1.

    Source: Godey et al. 2024, section 5.3, for its W-error; Eckart and Young 1936.
    """
    return np.sqrt(tails(singular_values) / np.sum(singular_values**2))


def _kl_from_uniform(masses: np.ndarray) -> float:
    p = masses / np.sum(masses)
    present = p[p > 0]  # 0·log 0 = 0
    return float(np.log(len(p)) + np.sum(present * np.log(present)))


# Numbers of a spectrum that every probe has, as fields of `runs.Probe` with the same names.
OF_HEADS = (singular_entropy, effective_rank, stable_rank, participation_ratio, tail_exponent)
