"""A test of saturation: does a loss end above its own earlier level, by how much, how surely?

A series is the loss of one model at n of its steps, on the same text each time. The test looks at
the last nine tenths of training. Its null hypothesis is a loss whose expectation never rises, plus
noise. It is calibrated on the hardest such loss, a flat one. g: documents.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from bottleneck.probes.document_sums import DocumentSums
from bottleneck.runs.reading import Run

FALSE_POSITIVES = 0.05  # at most, if neighbours' noise correlates by NOISE_CORRELATION or less
NOISE_CORRELATION = 0.2
FEWEST_CHECKPOINTS = 8  # of the last nine tenths

_FIRST_SHARE = 0.1  # of the steps, left out: every training begins with a fall
_WINDOW_SHARE = 0.25  # of the checkpoints; a rise must have filled more than half of such a window
_KEPT_RESIDUALS = 0.8  # the largest fifth may be spikes
_N_SIMULATED = 10_000
_N_RESAMPLES = 2000


@dataclass(frozen=True)
class LossSeries:
    """The loss of one model over training, on the same text at every step.

    steps: int [n], ascending.
    loss: float64 [n], nats per token, or a logarithm of perplexity.
    document_losses: float64 [n, g], sums over the tokens of each document.
    document_tokens: int [g], their counts. Both are None if only means were kept.
    """

    name: str
    steps: np.ndarray
    loss: np.ndarray
    document_losses: np.ndarray | None = None
    document_tokens: np.ndarray | None = None


@dataclass(frozen=True)
class Saturation:
    """The end of a series against its least loss.

    interval: 95 %, of `relative` over resampled documents at these two steps; None without them. It
        is the error of measuring two models on this text, not that of the choice of steps.
    p_end, p_rise: the probabilities that noise alone ends, or at any time lies, as far above an
        earlier level as this series; None if it has too few checkpoints.
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
        """(L_final − L_min)/L_min."""
        return (self.final_loss - self.best_loss) / self.best_loss

    @property
    def verdict(self) -> str | None:
        """The outcome of the test at `FALSE_POSITIVES`; None if the checkpoints are too few."""
        if self.p_end is None or self.p_rise is None:
            return None
        if self.p_end < FALSE_POSITIVES:
            return "saturates"
        return "rises and recovers" if self.p_rise < FALSE_POSITIVES else "does not saturate"


def detect_saturation(series: LossSeries) -> Saturation:
    """Returns the end of a series against its least loss, tested by `end_and_rise`."""
    best = int(np.argmin(series.loss))
    late = late_part(series.steps)
    p_end = p_rise = None
    if late.sum() >= FEWEST_CHECKPOINTS:
        null_end, null_rise = _null(int(late.sum()))
        end, rise = end_and_rise(series.loss[late])
        p_end, p_rise = float((null_end >= end).mean()), float((null_rise >= rise).mean())
    steps, loss = series.steps, series.loss
    ends = (int(steps[best]), float(loss[best]), int(steps[-1]), float(loss[-1]))
    return Saturation(*ends, _paired_interval(series, best), p_end, p_rise)


def late_part(steps: np.ndarray) -> np.ndarray:
    """Returns a mask, bool [n], of the checkpoints tested: a tenth of the last step and later."""
    return np.asarray(steps) >= _FIRST_SHARE * steps[-1]


def end_and_rise(loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns two statistics, [...] each: the rise to the end, and the largest rise to any time.

    A level is the median over a window of a quarter of the checkpoints, which one spike does not
    move. The first statistic is the last level minus the lowest of a window that does not overlap
    it. The second is the most that a level exceeds that of any window wholly before it. The unit is
    the noise: the mean distance of a checkpoint from the mean of its four neighbours, without the
    largest fifth. `loss` is float64 [..., n], n ≥ `FEWEST_CHECKPOINTS`.
    """
    width = max(3, round(_WINDOW_SHARE * loss.shape[-1]))
    windows = np.lib.stride_tricks.sliding_window_view(loss, width, axis=-1)
    level = np.median(windows, axis=-1)
    lowest = np.minimum.accumulate(level, axis=-1)
    above = level[..., width:] - lowest[..., :-width]
    noise = _noise(loss)
    return above[..., -1] / noise, above.max(axis=-1) / noise


def series_of_run(run: Run) -> LossSeries | None:
    """Returns a run's validation losses, with its documents' if its probes kept them all.

    None if the run has no validation loss.
    """
    steps, loss = run.series("eval", "step", "loss")
    if not len(steps):
        return None
    steps = steps.astype(int)
    probes = [run.probe(step) for step in run.probe_steps if step in steps]
    kept = [probe for probe in probes if probe.document_losses is not None]
    if not kept or len(kept) != len(steps):
        return LossSeries(run.name, steps, loss)
    document_losses = np.stack([probe.document_losses for probe in kept])
    return LossSeries(run.name, steps, loss, document_losses, kept[0].document_tokens)


def _noise(loss: np.ndarray) -> np.ndarray:
    before, after = loss[..., :-4] + loss[..., 1:-3], loss[..., 3:-1] + loss[..., 4:]
    distance = np.sort(np.abs(loss[..., 2:-2] - (before + after) / 4), axis=-1)
    kept = int(np.ceil(_KEPT_RESIDUALS * distance.shape[-1]))
    mean = distance[..., :kept].mean(axis=-1)
    # Without noise any rise counts, and a flat series must have none.
    return np.maximum(mean, np.finfo(float).eps * np.abs(loss).max(axis=-1))


@functools.lru_cache(maxsize=64)
def _null(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the two statistics of simulated noise at n checkpoints: float64 [simulated] each."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((_N_SIMULATED, n))
    for i in range(1, n):
        fresh = np.sqrt(1 - NOISE_CORRELATION**2) * noise[:, i]
        noise[:, i] = NOISE_CORRELATION * noise[:, i - 1] + fresh
    return end_and_rise(noise)


def _paired_interval(series: LossSeries, best: int) -> tuple[float, float] | None:
    """Returns the 95 % interval of the relative loss; both steps share each draw of documents."""
    if series.document_losses is None or series.document_tokens is None:
        return None
    documents = DocumentSums(series.document_losses[[best, -1]].T, series.document_tokens)
    least, last = documents.resampled_means(_N_RESAMPLES).T
    low, high = np.quantile((last - least) / least, [0.025, 0.975])
    return float(low), float(high)
