"""How loss falls with the head's rank: L(r) = L∞ + c·r^−p, with intervals.

The form is what the paper's figure 6 follows to a few hundredths of a nat; it is a description, not
a theory. r: rank; g: documents that the losses are means over.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_EXPONENTS = np.geomspace(0.02, 5, 400)
_RESAMPLES = 1000


@dataclass(frozen=True)
class RankLaw:
    """limit: L∞ in nats; scale: c; exponent: p; residual: largest distance from a loss, nats.

    intervals: 95 %, by resampling documents, of each of the three; None without documents.
    """

    limit: float
    scale: float
    exponent: float
    residual: float
    intervals: dict[str, tuple[float, float]] | None = None

    def loss(self, ranks: np.ndarray) -> np.ndarray:
        return self.limit + self.scale * np.asarray(ranks, np.float64) ** -self.exponent

    def rank_of_gap(self, gap: float, width: int) -> float:
        """The rank whose loss is `gap` nats above that of a head of rank `width`."""
        at_width = width**-self.exponent
        return float((gap / self.scale + at_width) ** (-1 / self.exponent))


def fit_rank_law(
    ranks: np.ndarray,
    losses: np.ndarray,
    document_losses: np.ndarray | None = None,
    document_tokens: np.ndarray | None = None,
) -> RankLaw | None:
    """The law nearest to the losses in least squares, or None for fewer than four ranks.

    Args:
        ranks, losses: [n].
        document_losses: [g, n] sums over the tokens of each document; resampled with
            `document_tokens` [g] for the intervals, all ranks together, as they share the text.
    """
    ranks = np.asarray(ranks, np.float64)
    if len(np.unique(ranks)) < 4:
        return None
    (limit, scale, exponent), residuals = _solve(ranks, np.asarray(losses, np.float64)[None])[0]
    intervals = None
    if document_losses is not None and document_tokens is not None:
        g = len(document_tokens)
        draws = np.random.default_rng(0).multinomial(g, np.full(g, 1 / g), size=_RESAMPLES)
        resampled = draws @ document_losses / (draws @ document_tokens)[:, None]
        found = np.array([constants for constants, _ in _solve(ranks, resampled)])
        low, high = np.quantile(found, [0.025, 0.975], axis=0)
        names = ("limit", "scale", "exponent")
        intervals = {
            name: (float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)
        }
    return RankLaw(limit, scale, exponent, float(np.abs(residuals).max()), intervals)


def _solve(
    ranks: np.ndarray, losses: np.ndarray
) -> list[tuple[tuple[float, float, float], np.ndarray]]:
    """(L∞, c, p) and residuals for each row of losses [k, n].

    For a given p the other two follow from a line through (r^−p, L); p is then the best of a grid
    whose steps, 1.4 %, are far below what such few points can tell.
    """
    powers = ranks ** -_EXPONENTS[:, None]  # [p, n]
    x = powers - powers.mean(axis=1, keepdims=True)
    y = losses - losses.mean(axis=1, keepdims=True)
    scales = y @ x.T / np.sum(x**2, axis=1)  # [k, p]
    squares = np.sum(y**2, axis=1)[:, None] - scales**2 * np.sum(x**2, axis=1)
    best = np.argmin(squares, axis=1)
    scale = scales[np.arange(len(losses)), best]
    limit = losses.mean(axis=1) - scale * powers[best].mean(axis=1)
    residuals = losses - (limit[:, None] + scale[:, None] * powers[best])
    return [
        ((float(a), float(c), float(_EXPONENTS[p])), row)
        for a, c, p, row in zip(limit, scale, best, residuals, strict=True)
    ]
