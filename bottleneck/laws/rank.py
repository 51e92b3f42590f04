"""The law of loss against the head's rank, L(R) = L∞ + c·R^−p, with intervals.

It fits figure 6 of Godey et al. 2024 to a few hundredths of a nat; it describes and explains
nothing. R: rank; n: ranks; g: documents that the losses are means over; nats per token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bottleneck.errors import UserError
from bottleneck.probes.document_sums import DocumentSums

LEAST_RANKS = 4  # one more than the law has constants

_EXPONENTS = np.geomspace(0.05, 5.0, 300)  # the range of p
_ROUNDS, _FINER = 3, 20  # each round is 20 times finer around the best p: to 2e-6
_RESAMPLES = 1000


@dataclass(frozen=True)
class RankLaw:
    """A fitted law of the rank: L∞ (`floor`), c (`scale`) and p (`exponent`).

    residual: the largest |L(R) − loss| over the fitted losses.
    intervals: 95 % of each of the three, by resampling documents; None without documents.
    """

    floor: float
    scale: float
    exponent: float
    residual: float = 0.0
    intervals: dict[str, tuple[float, float]] | None = None

    def __call__(self, ranks: np.ndarray) -> np.ndarray:
        """Returns the law's loss at the ranks, nats per token: float64 of their shape."""
        return self.floor + self.scale * np.asarray(ranks, np.float64) ** -self.exponent


def fit_rank(
    ranks: np.ndarray,
    losses: np.ndarray,
    document_losses: np.ndarray | None = None,
    document_tokens: np.ndarray | None = None,
) -> RankLaw:
    """Returns the law of least squares, with L∞ ≥ 0, c ≥ 0 and p in [0.05, 5].

    All losses weigh the same: those of one experiment share the sampling error of its documents.

    Args:
        ranks, losses: [n].
        document_losses, document_tokens: sums over each document [g, n] and their tokens [g]. Given
            both, intervals come from resampled documents, drawn once for all ranks.
    Raises: `UserError` if fewer than `LEAST_RANKS` ranks differ.
    """
    ranks, losses = np.asarray(ranks, np.float64), np.asarray(losses, np.float64)
    if len(set(ranks)) < LEAST_RANKS:
        found = f"{LEAST_RANKS} different ranks, not {len(set(ranks))}"
        raise UserError(f"a law of the rank needs {found}")
    law, intervals = RankLaw(*_solve(ranks, losses[None])[0].tolist()), None
    if document_losses is not None and document_tokens is not None:
        documents = DocumentSums(document_losses, document_tokens)
        resampled = _solve(ranks, documents.resampled_means(_RESAMPLES))
        ends = np.quantile(resampled, [0.025, 0.975], axis=0)
        pairs = map(tuple, ends.T.tolist())
        intervals = dict(zip(("floor", "scale", "exponent"), pairs, strict=True))
    return replace(law, residual=float(np.abs(law(ranks) - losses).max()), intervals=intervals)


def _solve(ranks: np.ndarray, losses_kxn: np.ndarray) -> np.ndarray:
    """Returns L∞, c and p of each row of losses: float64 [k, 3].

    Given p, the other two are a linear problem, so the search has one dimension.
    """
    best = _best(ranks, losses_kxn, np.tile(_EXPONENTS, (len(losses_kxn), 1)))
    step = np.log(_EXPONENTS[1] / _EXPONENTS[0])
    for _ in range(_ROUNDS):
        near = best[:, 2:] * np.exp(step * np.linspace(-1, 1, 2 * _FINER + 1))
        best = _best(ranks, losses_kxn, np.clip(near, _EXPONENTS[0], _EXPONENTS[-1]))
        step /= _FINER
    return best


def _best(ranks: np.ndarray, losses_kxn: np.ndarray, exponents_kxp: np.ndarray) -> np.ndarray:
    """Returns L∞, c and p [k, 3] at the exponent of each row with the least sum of squares."""
    powers = ranks ** -exponents_kxp[..., None]  # [k, p, n]
    losses = losses_kxn[:, None]
    x = powers - powers.mean(axis=-1, keepdims=True)
    y = losses - losses.mean(axis=-1, keepdims=True)
    scale = np.maximum(np.sum(x * y, axis=-1) / np.sum(x**2, axis=-1), 0.0)
    floor = losses.mean(axis=-1) - scale * powers.mean(axis=-1)
    through_zero = np.sum(powers * losses, axis=-1) / np.sum(powers**2, axis=-1)
    scale = np.where(floor < 0, through_zero, scale)
    floor = np.maximum(floor, 0.0)
    squares = np.sum((losses - floor[..., None] - scale[..., None] * powers) ** 2, axis=-1)
    best = np.argmin(squares, axis=1)[:, None]
    columns = (floor, scale, exponents_kxp)
    return np.hstack([np.take_along_axis(column, best, axis=1) for column in columns])
