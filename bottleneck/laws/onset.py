"""The onset of a rise: one change of slope at a step τ, with an interval. n: points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import f as f_distribution

_FEWEST = 5  # points; a broken line has four constants
_HALF = 0.5  # of the rise; later it bends towards a plateau
_FALL = 0.75  # of the height of the rise, in the fall before it; earlier a loss bends too
_BEFORE = 3  # the fewest points before the lowest one
_N_CANDIDATES = 400  # steps tried for τ
_SIGNIFICANCE = 0.01  # at which a broken line must beat a straight one


@dataclass(frozen=True)
class Onset:
    """The step at which a rise begins, and the ends of its interval."""

    step: float
    low: float
    high: float


def detect_onset(steps: np.ndarray, values: np.ndarray) -> Onset | None:
    """Returns the step at which a series turns to a rise; None if no such turn is clear.

    Fits a broken line, y = c + s₁·min(t − τ, 0) + s₂·max(t − τ, 0) with s₂ > max(s₁, 0), by least
    squares. Its first point follows the last one in the fall that is three quarters as high as the
    rise; its last one is half way up the rise. A broken line must beat a straight one in an F-test
    at 1 %. The interval holds every τ that an F-test at 95 % cannot tell from the best one. It
    covers the true τ about nine times in ten, because it takes the choice of points for given and
    the fall for straight. `steps` [n] must ascend.
    """
    steps, values = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    valley = _valley(values)
    t, y = steps[valley], values[valley]
    n = len(t)
    if n < _FEWEST:
        return None
    tau = np.linspace(t[1], t[-2], _N_CANDIDATES)
    left, right = (side(t - tau[:, None], 0) for side in (np.minimum, np.maximum))
    design = np.stack([np.ones_like(left), left, right], axis=2)  # [candidates, n, 3]
    slopes = np.einsum("cpn,n->cp", np.linalg.pinv(design), y)
    squares = np.sum((np.einsum("cnp,cp->cn", design, slopes) - y) ** 2, axis=1)
    squares[slopes[:, 2] <= np.maximum(slopes[:, 1], 0)] = np.inf
    best = int(np.argmin(squares))
    if not np.isfinite(squares[best]):
        return None
    least = max(float(squares[best]), np.finfo(float).tiny)
    straight = np.sum((np.polyval(np.polyfit(t, y, 1), t) - y) ** 2)
    gained = (straight - least) / 2 / (least / (n - 4))
    if gained < f_distribution.ppf(1 - _SIGNIFICANCE, 2, n - 4):
        return None
    inside = squares <= least * (1 + f_distribution.ppf(0.95, 1, n - 4) / (n - 4))
    return Onset(float(tau[best]), float(tau[inside].min()), float(tau[inside].max()))


def _valley(values: np.ndarray) -> slice:
    """Returns the points around the foot of the greatest rise that a broken line may describe."""
    lowest = np.minimum.accumulate(values)
    top = int(np.argmax(values - lowest))
    bottom = int(np.argmin(values[: top + 1]))
    height = (values[: top + 1] - values[bottom]) / max(values[top] - values[bottom], 1e-300)
    above = np.flatnonzero(height[:bottom] > _FALL)
    first = min(above[-1] + 1 if len(above) else 0, max(bottom - _BEFORE, 0))
    return slice(int(first), bottom + int(np.argmax(height[bottom:] >= _HALF)) + 1)
