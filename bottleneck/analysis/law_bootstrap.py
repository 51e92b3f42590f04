"""How sure the constants of a scaling law are, and what follows from them: bootstrap over points.

n: points; S: resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bottleneck.analysis.scaling_law import Points, ScalingLaw, refit

COVERAGE = 0.95


@dataclass(frozen=True)
class Bootstrap:
    """The law's constants in each resample of the points: name → float64 [S]."""

    constants: Mapping[str, np.ndarray]

    def interval(self, constant: str) -> np.ndarray:
        """The middle 95 % of a constant: float64 [2]."""
        return middle(self.constants[constant])


def middle(values: np.ndarray) -> np.ndarray:
    """Where the middle 95 % of resampled values [S, …] begin and end: float64 [2, …]."""
    tail = (1 - COVERAGE) / 2
    return np.quantile(values, [tail, 1 - tail], axis=0)


def bootstrap(law: ScalingLaw, points: Points, n_resamples: int, seed: int = 0) -> Bootstrap:
    """Fits the law to resamples of its points, drawn with replacement.

    A resample with fewer distinct points than the law has free constants says nothing about them,
    and is drawn again.
    """
    rng = np.random.default_rng(seed)
    n, n_free = len(points), len(law.free)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=n_resamples)
    while (poor := (counts > 0).sum(axis=1) < n_free).any():
        counts[poor] = rng.multinomial(n, np.full(n, 1 / n), size=int(poor.sum()))
    return Bootstrap(refit(law, points, counts))
