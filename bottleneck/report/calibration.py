"""The positive control: heads trained on a language of known rank, beside what theory says of them.

Three numbers are known without any training: the entropy rate of the language, which no model can
beat; the best loss of a head of rank R, which none of that rank can beat; and the rank ρ from which
on the two are one. The sweep's measured losses must lie on the second, and turn flat at the third.

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
from bottleneck.drawing.style import GREY, SMALL, WIDTH, NothingToShow, styled
from bottleneck.runs.reading import Run

# How far above the floor training may end on a language that the head can represent.
SLACK = 0.01  # nats per token

_RANDOM_STARTS = 3
_AT_FLOOR = 1e-10  # nats: below this distance from the floor there is nothing left to gain


@dataclass(frozen=True)
class Calibration:
    """The sweep on one language; n runs, by rank. All losses are in nats per token."""

    true_rank: int  # ρ
    floor: float  # the entropy rate
    ranks: np.ndarray  # int [n], R of each run
    losses: np.ndarray  # float64 [n], held out
    errors: np.ndarray  # float64 [n], their standard errors
    best_ranks: np.ndarray  # int, every rank from the lowest to the highest of the sweep, and ρ
    best: np.ndarray  # float64, the best loss of a head of each

    @property
    def critical_rank(self) -> int | None:
        """The least R from which on every run is at the floor; None where the last is not.

        A run is at the floor where its loss is at most SLACK and two standard errors above it.
        """
        is_at_floor = self.losses <= self.floor + SLACK + 2 * self.errors
        above = self.ranks[~is_at_floor].max(initial=0)
        return min((int(rank) for rank in self.ranks if rank > above), default=None)


def calibrate(runs: Sequence[Run]) -> list[Calibration]:
    """A calibration for each language among the finished runs, by rank."""
    sweeps: dict[tuple[int, int, int], list[Run]] = {}
    for run in runs:
        data = run.config.data
        if data.corpus == "known_rank" and run.is_complete and len(run.series("eval", "loss")[0]):
            key = (data.language_rank, data.language_tokens, data.language_seed)
            sweeps.setdefault(key, []).append(run)
    return [_calibration(key, sweeps[key]) for key in sorted(sweeps)]


def _calibration(key: tuple[int, int, int], runs: list[Run]) -> Calibration:
    true_rank, n_tokens, seed = key
    language = make_language(n_tokens, true_rank, seed)
    measured = sorted(
        (run.head_rank, *(float(column[-1]) for column in run.series("eval", "loss", "loss_se")))
        for run in runs
    )
    ranks, losses, errors = (np.array(column) for column in zip(*measured, strict=True))
    best_ranks = np.arange(min(*ranks, true_rank), max(*ranks, true_rank) + 1)
    best = best_losses(language, best_ranks)
    return Calibration(true_rank, language.entropy_rate, ranks, losses, errors, best_ranks, best)


def best_losses(language: Language, ranks: Sequence[int] | np.ndarray) -> np.ndarray:
    """The least cross-entropy of any head of each rank on a language: float64, nats per token.

    min over U, W [V, R] of Σ_s π_s H(P_s, softmax(W u_s)). A hidden state for each last token is
    enough: given W the best one depends on P_s alone, and no other context changes P_s. The problem
    is not convex, so it is solved by L-BFGS from several starts: truncated SVDs of the logits, with
    and without the weights π, and random ones. At R ≥ ρ the SVD itself is the solution.

    Args:
        ranks: R, ascending.
    """
    rng = np.random.default_rng(0)
    best = []
    for rank in ranks:
        least = np.inf
        for start in _starts(language, rank, rng):
            least = min(least, _descend(language, start))
            if least < language.entropy_rate + _AT_FLOOR:
                break
        best.append(least)
    # A head of some rank is one of every higher rank too.
    return np.minimum.accumulate(best)


def _starts(language: Language, rank: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Where to start from: U and W as [2, V, R]."""
    logits = np.log(language.transitions)
    logits -= logits.mean(axis=1, keepdims=True)
    for weights in (1.0, np.sqrt(language.stationary)[:, None]):
        right = np.linalg.svd(weights * logits)[2][:rank]
        # Factored anew, since L-BFGS is slow where one factor is much larger than the other.
        left, values, right = np.linalg.svd(logits @ right.T @ right)
        root = np.sqrt(values[:rank])
        yield np.stack([left[:, :rank] * root, right[:rank].T * root])
    for _ in range(_RANDOM_STARTS):
        yield rng.standard_normal((2, len(logits), rank)) / 2


def _descend(language: Language, start: np.ndarray) -> float:
    """The loss at the local minimum that a start [2, V, R] leads to."""

    def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        # Not with @: for such small products BLAS starts threads that cost more than they do.
        left, right = flat.reshape(start.shape)
        logits = np.einsum("sr,tr->st", left, right)
        excess = softmax(logits, axis=1) - language.transitions
        of_logits = language.stationary[:, None] * excess
        of_left = np.einsum("st,tr->sr", of_logits, right)
        of_right = np.einsum("st,sr->tr", of_logits, left)
        return language.cross_entropy(logits), np.stack([of_left, of_right]).ravel()

    # A relative gain of 1e-12 a step, or a gradient of 1e-7, is the end.
    limits = {"maxiter": 5000, "ftol": 1e-12, "gtol": 1e-7}
    result = minimize(loss_and_gradient, start.ravel(), jac=True, method="L-BFGS-B", options=limits)
    return float(result.fun)


@styled
def calibration(runs: Sequence[Run]) -> Figure:
    """Held-out loss against R, the entropy floor, and the best loss of any head of rank R."""
    sweeps = [sweep for sweep in calibrate(runs) if len(set(sweep.ranks.tolist())) >= 2]
    if not sweeps:
        raise NothingToShow(
            "no two finished runs are of a language of known rank and differ in theirs"
        )
    figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
    for panel, sweep in zip(figure.subplots(1, len(sweeps), squeeze=False)[0], sweeps, strict=True):
        panel.axvline(sweep.true_rank, color=GREY, lw=1, ls=":")
        panel.axhline(sweep.floor, color=GREY, lw=1, ls=(0, (4, 3)), label="entropy rate")
        panel.plot(sweep.best_ranks, sweep.best, color="#d55e00", lw=1.2, label="best of rank R")
        panel.errorbar(
            *(sweep.ranks, sweep.losses, sweep.errors),
            **{"color": "#0072b2", "ls": "", "marker": "o", "label": "trained, ± SE"},
        )
        found = "not reached" if sweep.critical_rank is None else sweep.critical_rank
        panel.set_title(f"true rank {sweep.true_rank}, estimated from the losses: {found}")
        panel.set(xlabel="rank R of the head", ylabel="held-out loss (nats/token)")
        panel.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        panel.text(
            *(sweep.true_rank, 0.98, "ρ "),
            transform=panel.get_xaxis_transform(),
            **{"ha": "right", "va": "top", "color": GREY, "size": SMALL},
        )
        panel.legend(loc="upper right")
    return figure
