"""The positive control: heads trained on a language of known rank, against theory.

Three numbers are known without training. No model beats the language's entropy rate. No head of
rank R beats the best loss of that rank. From rank ρ on the two are equal. Measured losses must lie
on the best loss and turn flat at ρ.

V: tokens of the language; ρ: its rank; R: rank of a head; P, π: see `data.known_rank`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.optimize import minimize
from scipy.special import softmax

from bottleneck.data.known_rank import Language, make_language
from bottleneck.drawing.style import GREY, SMALL, NothingToShow, panel_row, styled
from bottleneck.runs.reading import Run

# Training may end this far above the floor on a language that the head can represent.
SLACK = 0.01  # nats per token

_RANDOM_STARTS = 3
_AT_FLOOR = 1e-10  # nats above the floor; below it the search stops


@dataclass(frozen=True)
class Calibration:
    """A sweep of n runs on one language, ordered by rank; losses in nats per token.

    true_rank, floor: ρ and the entropy rate.
    ranks, losses, errors: [n] each, R of each run, validation losses, and standard errors.
    best_ranks, best: all ranks that the sweep and ρ span, and the best loss of a head of each.
    """

    true_rank: int
    floor: float
    ranks: np.ndarray
    losses: np.ndarray
    errors: np.ndarray
    best_ranks: np.ndarray
    best: np.ndarray

    @property
    def critical_rank(self) -> int | None:
        """The lowest R from which every run is at the floor; None if the last run is not.

        A run is at the floor if its loss is at most SLACK and two standard errors above it.
        """
        is_at_floor = self.losses <= self.floor + SLACK + 2 * self.errors
        above = self.ranks[~is_at_floor].max(initial=0)
        return min((int(rank) for rank in self.ranks if rank > above), default=None)


def calibrate(runs: Sequence[Run]) -> list[Calibration]:
    """Returns a calibration for each language among the finished runs, by rank."""
    sweeps: dict[tuple[int, int, int], list[tuple[float, ...]]] = {}
    for run in runs:
        data, measured = run.config.data, run.series("eval", "loss", "loss_se")
        if data.corpus == "known_rank" and run.is_complete and len(measured[0]):
            key = (data.language_rank, data.language_tokens, data.language_seed)
            point = (run.head_rank, *(float(column[-1]) for column in measured))
            sweeps.setdefault(key, []).append(point)
    found = []
    for (true_rank, n_tokens, seed), points in sorted(sweeps.items()):
        language = make_language(n_tokens, true_rank, seed)
        ranks, losses, errors = map(np.array, zip(*sorted(points), strict=True))
        best_ranks = np.arange(min(*ranks, true_rank), max(*ranks, true_rank) + 1)
        best = best_losses(language, best_ranks)
        floor = language.entropy_rate
        found.append(Calibration(true_rank, floor, ranks, losses, errors, best_ranks, best))
    return found


def best_losses(language: Language, ranks: Sequence[int] | np.ndarray) -> np.ndarray:
    """Returns the least cross-entropy of any head of each rank: float64, nats per token.

    It minimises Σ_s π_s H(P_s, softmax(W u_s)) over U, W [V, R]. One hidden state per last token
    is enough, because P_s depends on that token alone. The problem is not convex. L-BFGS starts
    from truncated SVDs of the logits, with and without weights π, and from random points. At R ≥ ρ
    the SVD is the solution.

    Args:
        ranks: R, ascending.
    """
    rng = np.random.default_rng(0)
    best = np.full(len(ranks), np.inf)
    for index, rank in enumerate(ranks):
        for start in _starts(language, rank, rng):
            best[index] = min(best[index], _descend(language, start))
            if best[index] < language.entropy_rate + _AT_FLOOR:
                break
    # A head of some rank is also a head of every higher rank.
    return np.minimum.accumulate(best)


def _starts(language: Language, rank: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Returns starting points: U and W as [2, V, R]."""
    logits = np.log(language.transitions)
    logits -= logits.mean(axis=1, keepdims=True)
    for weights in (1.0, np.sqrt(language.stationary)[:, None]):
        right = np.linalg.svd(weights * logits)[2][:rank]
        # Balanced factors: L-BFGS is slow if one is much larger than the other.
        left, values, right = np.linalg.svd(logits @ right.T @ right)
        root = np.sqrt(values[:rank])
        yield np.stack([left[:, :rank] * root, right[:rank].T * root])
    for _ in range(_RANDOM_STARTS):
        yield rng.standard_normal((2, len(logits), rank)) / 2


def _descend(language: Language, start: np.ndarray) -> float:
    """Returns the loss at the local minimum reached from a start [2, V, R]."""

    def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        # Not @: BLAS threads cost more than they gain for small products.
        left, right = flat.reshape(start.shape)
        logits = np.einsum("sr,tr->st", left, right)
        excess = softmax(logits, axis=1) - language.transitions
        of_logits = language.stationary[:, None] * excess
        of_left = np.einsum("st,tr->sr", of_logits, right)
        of_right = np.einsum("st,sr->tr", of_logits, left)
        return language.cross_entropy(logits), np.stack([of_left, of_right]).ravel()

    # It stops at a relative gain of 1e-12 per step or a gradient of 1e-7.
    limits = {"maxiter": 5000, "ftol": 1e-12, "gtol": 1e-7}
    result = minimize(loss_and_gradient, start.ravel(), jac=True, method="L-BFGS-B", options=limits)
    return float(result.fun)


@styled
def calibration(runs: Sequence[Run]) -> Figure:
    """Returns the figure of validation loss, entropy floor and best possible loss against R."""
    sweeps = [sweep for sweep in calibrate(runs) if len(set(sweep.ranks.tolist())) >= 2]
    if not sweeps:
        raise NothingToShow("no two finished runs on a language of known rank differ in head rank")
    figure, panels = panel_row(4.0, len(sweeps))
    for panel, sweep in zip(panels, sweeps, strict=True):
        panel.axvline(sweep.true_rank, color=GREY, lw=1, ls=":")
        panel.axhline(sweep.floor, color=GREY, lw=1, ls=(0, (4, 3)), label="entropy rate")
        panel.plot(sweep.best_ranks, sweep.best, color="#d55e00", lw=1.2, label="best of rank R")
        dots = {"color": "#0072b2", "ls": "", "marker": "o", "label": "trained, ± SE"}
        panel.errorbar(sweep.ranks, sweep.losses, sweep.errors, **dots)
        found = "not reached" if sweep.critical_rank is None else sweep.critical_rank
        panel.set_title(f"true rank {sweep.true_rank}, estimated from the losses: {found}")
        panel.set(xlabel="rank R of the head", ylabel="validation loss (nats/token)")
        panel.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        note = {"ha": "right", "va": "top", "color": GREY, "size": SMALL}
        panel.text(sweep.true_rank, 0.98, "ρ ", transform=panel.get_xaxis_transform(), **note)
        panel.legend(loc="upper right")
    return figure
