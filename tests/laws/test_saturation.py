"""The test of saturation: on the paper's curves, on published evaluations, on made-up noise."""

import os
from pathlib import Path

import numpy as np
import pytest

from bottleneck.laws.saturation import (
    FALSE_POSITIVES,
    LossSeries,
    end_and_rise,
    saturation,
    series_of_run,
)
from bottleneck.paper.evals import LOSSES, loss_series, read_evals
from bottleneck.paper.values import figure_1a
from bottleneck.runs.reading import load_run

STEPS = 5000 * np.arange(1, 29)


def reference(name: str) -> Path:
    """A file of shared/reference/, beside the repository or above it; skips where it is absent."""
    places = [Path(p) for p in [os.environ.get("BOTTLENECK_REFERENCE")] if p]
    places += [parent / "shared" / "reference" for parent in Path(__file__).resolve().parents]
    found = [place / name for place in places if (place / name).is_file()]
    if not found:
        pytest.skip(f"shared/reference/{name} is not there")
    return found[0]


def judged(loss, steps=STEPS):
    return saturation(LossSeries("made up", steps[-len(loss) :], np.asarray(loss)))


def decay(steps=STEPS):
    """A loss that falls all the way, as Pythia-410M's does."""
    return 2.6 + 2.5 * (steps / 1000.0) ** -0.5


@pytest.mark.parametrize(
    ("model", "verdict"),
    [
        ("14M", "rises and recovers"),
        ("31M", "saturates"),
        ("70M", "saturates"),
        ("160M", "saturates"),
        ("410M", "does not saturate"),
    ],
)
def test_verdicts_on_figure_1a(model, verdict):
    found = saturation(figure_1a()[model])
    assert found.verdict == verdict
    # The dossier's best steps, confirmed by the FLOPs of figure 1b.
    best = {"14M": 35, "31M": 50, "70M": 50, "160M": 75, "410M": 140}
    assert found.best_step == 1000 * best[model]


def test_verdicts_on_the_published_evaluations():
    evals = read_evals(reference("pythia_evals.json"))
    verdicts = {
        model: saturation(loss_series(model, rows)).verdict for model, rows in evals.items()
    }
    saturated = {model for model, verdict in verdicts.items() if verdict == "saturates"}
    assert saturated == {"pythia-v1/pythia-70m", "pythia-v1/pythia-160m"}
    larger = {model for model in verdicts if "70m" not in model and "160m" not in model}
    assert len(larger) == 12
    assert {verdicts[model] for model in larger} == {"does not saturate"}
    words = {model: rows for model, rows in evals.items() if LOSSES[1] in rows[-1]}
    assert "pythia-v0/pythia-160m" in words
    for model, rows in words.items():
        assert saturation(loss_series(model, rows, LOSSES[1])).verdict == "does not saturate"


def simulated(kind: str, rng: np.random.Generator) -> np.ndarray:
    """A noisy curve whose expectation never rises."""
    n = len(STEPS)
    noise = {"small": 0.003, "large": 0.1}.get(kind, 0.01) * rng.standard_normal(n)
    if kind == "flat":
        return 3.0 + noise
    if kind == "heavy tails":
        noise = 0.005 * rng.standard_t(3, n)
    if kind == "spikes":
        noise[rng.integers(n, size=2)] += rng.uniform(0.05, 0.5, 2)
    return decay() + noise


@pytest.mark.parametrize("kind", ["small", "large", "flat", "heavy tails", "spikes"])
def test_at_most_5_percent_of_200_curves_that_do_not_saturate_are_said_to(kind):
    rng = np.random.default_rng(0)
    verdicts = [judged(simulated(kind, rng)).verdict for _ in range(200)]
    assert verdicts.count("saturates") <= FALSE_POSITIVES * 200


def test_the_hardest_curve_is_taken_for_saturated_as_often_as_is_stated():
    """Flat, with noise of the correlation that the test is calibrated for, drawn independently."""
    rng = np.random.default_rng(7)
    white = rng.standard_normal((4000, len(STEPS)))
    noise = white.copy()
    for i in range(1, len(STEPS)):
        noise[:, i] = 0.2 * noise[:, i - 1] + np.sqrt(1 - 0.04) * white[:, i]
    share = np.mean([judged(3 + 0.01 * one).verdict == "saturates" for one in noise])
    # Four standard errors of a share of 4,000.
    assert abs(share - FALSE_POSITIVES) < 4 * np.sqrt(0.05 * 0.95 / 4000)


@pytest.mark.parametrize("where", [3, 14, 26, 27])
def test_one_spike_is_no_saturation(where):
    loss = decay() + 0.003 * np.random.default_rng(1).standard_normal(28)
    loss[where] += 1.0
    assert judged(loss).verdict == "does not saturate"
    flat = 3 + 0.003 * np.random.default_rng(2).standard_normal(28)
    flat[where] += 1.0
    assert judged(flat).verdict == "does not saturate"


def test_a_dip_and_a_spike_do_not_hide_a_rise():
    loss = decay() + 0.006 * np.random.default_rng(3).standard_normal(28)
    loss[18:] += 0.15
    loss[5] += 0.5
    loss[-1] -= 0.4
    assert judged(loss).verdict == "saturates"


def test_a_rise_that_comes_back_is_told_from_one_that_stays():
    noise = 0.004 * np.random.default_rng(4).standard_normal(28)
    hill = 3 + noise + 0.1 * np.exp(-(((np.arange(28) - 16) / 3) ** 2))
    found = judged(hill)
    assert found.verdict == "rises and recovers"
    assert found.p_rise < 0.001 and found.p_end > 0.05
    assert judged(3 + noise + 0.1 * (np.arange(28) > 14)).verdict == "saturates"


def test_the_statistics_do_not_depend_on_units():
    loss = decay() + 0.01 * np.random.default_rng(5).standard_normal((3, 28))
    for one, other in zip(end_and_rise(loss), end_and_rise(7 * loss - 2), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)


def test_too_few_checkpoints_have_no_verdict():
    found = judged(decay()[-7:])
    assert found.verdict is None and found.p_end is None
    assert found.best_loss == decay()[-1]


def test_relative_loss_is_the_end_over_the_least():
    found = judged([3.0, 2.5, 2.0, 2.2])
    assert found.relative == pytest.approx(0.1, rel=1e-14)
    assert (found.best_step, found.final_step) == (135_000, 140_000)


def with_documents(rng, rise, n_documents=60):
    """Losses of documents that are hard or easy for all steps alike."""
    tokens = rng.integers(50, 200, n_documents)
    hardness = rng.normal(3.5, 1.0, n_documents)
    means = hardness + rng.normal(0, 0.05, (3, n_documents)) + np.array([[0.2], [0.0], [rise]])
    sums = means * tokens
    loss = sums.sum(axis=1) / tokens.sum()
    return LossSeries("documents", np.array([1, 2, 3]), loss, sums, tokens)


def test_the_interval_is_paired_by_document_and_agrees_with_the_jackknife():
    series = with_documents(np.random.default_rng(6), rise=0.05)
    low, high = saturation(series).interval
    sums, tokens = series.document_losses, series.document_tokens
    left_out = []
    for i in range(len(tokens)):
        kept = np.delete(np.arange(len(tokens)), i)
        least, last = (sums[step, kept].sum() / tokens[kept].sum() for step in (1, 2))
        left_out.append((last - least) / least)
    error = np.sqrt((len(tokens) - 1) * np.var(left_out))
    assert (high - low) / (2 * 1.96) == pytest.approx(error, rel=0.15)
    # Unpaired, the spread of the documents, 1 nat, would drown a rise of 0.05.
    assert high - low < 0.02
    assert low < saturation(series).relative < high


def test_intervals_hold_the_true_rise_as_often_as_they_say():
    inside = 0
    for seed in range(100):
        series = with_documents(np.random.default_rng(seed), rise=0.05)
        true = 0.05 * series.document_tokens.sum() / series.document_losses[1].sum()
        low, high = saturation(series).interval
        inside += low <= true <= high
    # 95 of 100 within three standard errors.
    assert inside >= 88


def test_a_run_is_read_as_a_series(make_run):
    run = load_run(make_run())
    series = series_of_run(run)
    np.testing.assert_array_equal(series.steps, run.split("eval")["step"])
    assert series.document_losses is None
    for step in run.probe_steps:
        path = run.path / "probes" / f"{step:08d}.npz"
        arrays = dict(np.load(path))
        np.savez(path, **arrays, document_losses=np.full(4, step + 1.0), document_tokens=[1] * 4)
    series = series_of_run(load_run(run.path))
    assert series.document_losses.shape == (9, 4)
    np.testing.assert_array_equal(series.document_losses[:, 0], series.steps + 1.0)
