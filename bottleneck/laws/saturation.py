"""Saturation: whether a loss ends above its own earlier level, by how much, and how sure that is.

A series is the loss of one model at n of its steps, on the same text each time. The test asks about
the last nine tenths of training. Its null hypothesis is a loss whose expectation never rises, seen
through noise; the hardest such loss is one that has come to rest, so a flat series of noise is what
the test is calibrated on.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bottleneck.runs.reading import Run

FALSE_POSITIVES = 0.05  # at most, for noise whose neighbours correlate by up to NOISE_CORRELATION
NOISE_CORRELATION = 0.2
FEWEST_CHECKPOINTS = 8  # of the last nine tenths

Verdict = Literal["saturates", "rises and recovers", "does not saturate"]

_FIRST_SHARE = 0.1  # of the steps, left out: the fall that every training begins with
_WINDOW_SHARE = 0.25  # of the checkpoints; a rise must have filled more than half of such a window
_KEPT_RESIDUALS = 0.8  # the largest fifth may be spikes
_N_SIMULATED = 10_000
_N_RESAMPLES = 2000


@dataclass(frozen=True)
class LossSeries:
    """steps: int [n], ascending; loss: float64 [n], nats per token, or a logarithm of perplexity.

    document_losses: float64 [n, g], sums over the tokens of each of g documents, with their counts
    document_tokens [g]; None where only means were kept.
    """

    name: str
    steps: np.ndarray
    loss: np.ndarray
    document_losses: np.ndarray | None = None
    document_tokens: np.ndarray | None = None


@dataclass(frozen=True)
class Saturation:
    """How a series ends.

    best_step, best_loss: where the loss is least; final_step, final_loss: at the end.
    relative: (L_final − L_min)/L_min.
    interval: its 95 % interval over resampled documents, at these two steps; None without them. It
        says how well the text measures the two models, and not whether a later step would differ.
    p_end, p_rise: how often noise alone would end, or at some time lie, as far above an earlier
        level as this series does; None where it has too few checkpoints.
    """

    best_step: int
    best_loss: float
    final_step: int
    final_loss: float
    interval: tuple[float, float] | None
    p_end: float | None
    p_rise: float | None

    @property
    def relative(self) -> float:
        return (self.final_loss - self.best_loss) / self.best_loss

    @property
    def verdict(self) -> Verdict | None:
        """None where there are too few checkpoints to say."""
        if self.p_end is None or self.p_rise is None:
            return None
        if self.p_end < FALSE_POSITIVES:
            return "saturates"
        return "rises and recovers" if self.p_rise < FALSE_POSITIVES else "does not saturate"


def saturation(series: LossSeries) -> Saturation:
    """How a series ends; `end_and_rise` says how that is tested."""
    best = int(np.argmin(series.loss))
    late = late_part(series.steps)
    p_end = p_rise = None
    if late.sum() >= FEWEST_CHECKPOINTS:
        statistics = end_and_rise(series.loss[late])
        p_end, p_rise = (
            float((null >= statistic).mean())
            for null, statistic in zip(_null(int(late.sum())), statistics, strict=True)
        )
    return Saturation(
        best_step=int(series.steps[best]),
        best_loss=float(series.loss[best]),
        final_step=int(series.steps[-1]),
        final_loss=float(series.loss[-1]),
        interval=_paired_interval(series, best),
        p_end=p_end,
        p_rise=p_rise,
    )


def late_part(steps: np.ndarray) -> np.ndarray:
    """Which checkpoints the test looks at: bool [n], those from a tenth of the last step on."""
    return np.asarray(steps) >= _FIRST_SHARE * steps[-1]


def end_and_rise(loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far the end of a series, and its highest part, lie above an earlier part: two statistics.

    Parts are medians over a quarter of the checkpoints, which one spike does not move. The first
    statistic is the last part less the lowest that has no checkpoint in common with it; the second
    the most that any part exceeds one wholly before it. Both are in units of the noise: the mean
    distance of a checkpoint from the mean of its four neighbours, without the largest fifth.

    Args:
        loss: float64 [..., n], n ≥ `FEWEST_CHECKPOINTS`.
    """
    n = loss.shape[-1]
    width = max(3, round(_WINDOW_SHARE * n))
    windows = np.lib.stride_tricks.sliding_window_view(loss, width, axis=-1)
    level = np.median(windows, axis=-1)
    lowest = np.minimum.accumulate(level, axis=-1)
    above = level[..., width:] - lowest[..., :-width]
    noise = _noise(loss)
    return above[..., -1] / noise, above.max(axis=-1) / noise


def series_of_run(run: Run) -> LossSeries | None:
    """A run's held-out losses, with those of the documents where its probes kept them; None if it
    has none."""
    steps, loss = run.series("eval", "step", "loss")
    if not len(steps):
        return None
    steps = steps.astype(int)
    probes = [run.probe(step) for step in run.probe_steps if step in steps]
    kept = [probe for probe in probes if probe.document_losses is not None]
    if not kept or len(kept) != len(steps):
        return LossSeries(run.name, steps, loss)
    return LossSeries(
        *(run.name, steps, loss),
        np.stack([probe.document_losses for probe in kept]),
        kept[0].document_tokens,
    )


def _noise(loss: np.ndarray) -> np.ndarray:
    before, after = loss[..., :-4] + loss[..., 1:-3], loss[..., 3:-1] + loss[..., 4:]
    distance = np.sort(np.abs(loss[..., 2:-2] - (before + after) / 4), axis=-1)
    kept = int(np.ceil(_KEPT_RESIDUALS * distance.shape[-1]))
    mean = distance[..., :kept].mean(axis=-1)
    # A series without noise: any rise is one, and a flat one has none.
    return np.maximum(mean, np.finfo(float).eps * np.abs(loss).max(axis=-1))


@functools.lru_cache(maxsize=64)
def _null(n: int) -> tuple[np.ndarray, np.ndarray]:
    """The two statistics of series of n checkpoints of noise alone: float64 [simulated] each."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((_N_SIMULATED, n))
    for i in range(1, n):
        fresh = np.sqrt(1 - NOISE_CORRELATION**2) * noise[:, i]
        noise[:, i] = NOISE_CORRELATION * noise[:, i - 1] + fresh
    return end_and_rise(noise)


def _paired_interval(series: LossSeries, best: int) -> tuple[float, float] | None:
    """The middle 95 % of the relative loss over documents drawn anew, the same for both steps."""
    if series.document_losses is None or series.document_tokens is None:
        return None
    n_documents = len(series.document_tokens)
    rng = np.random.default_rng(0)
    counts = rng.multinomial(n_documents, np.full(n_documents, 1 / n_documents), _N_RESAMPLES)
    n_tokens = counts @ series.document_tokens
    least, last = (counts @ series.document_losses[step] / n_tokens for step in (best, -1))
    low, high = np.quantile((last - least) / least, [0.025, 0.975])
    return float(low), float(high)
