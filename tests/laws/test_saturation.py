"""The test of saturation: on the paper's curves, on published evaluations, on made-up noise."""

from pathlib import Path

import numpy as np
import pytest

from bottleneck import runs
from bottleneck.laws.saturation import (
    FALSE_POSITIVES,
    LossSeries,
    Saturation,
    detect_saturation,
    end_and_rise,
    late_part,
    series_of_run,
)
from bottleneck.paper.evals import LOSSES, loss_series, read_evals
from bottleneck.paper.values import figure_1a

STEPS = 5000 * np.arange(1, 29)
EVALS = Path(__file__).parent / "data" / "pythia_evals.json"


def judged(loss, steps=STEPS):
    return detect_saturation(LossSeries("made up", steps[-len(loss) :], np.asarray(loss)))


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
    found = detect_saturation(figure_1a()[model])
    assert found.verdict == verdict
    # The dossier's best steps, confirmed by the FLOPs of figure 1b.
    best = {"14M": 35, "31M": 50, "70M": 50, "160M": 75, "410M": 140}
    assert found.best_step == 1000 * best[model]


def test_verdicts_on_the_published_evaluations():
    evals = read_evals(EVALS)
    verdicts = {
        model: detect_saturation(loss_series(model, rows)).verdict for model, rows in evals.items()
    }
    saturated = {model for model, verdict in verdicts.items() if verdict == "saturates"}
    assert saturated == {"pythia-v1/pythia-70m", "pythia-v1/pythia-160m"}
    larger = {model for model in verdicts if "70m" not in model and "160m" not in model}
    assert len(larger) == 12
    assert {verdicts[model] for model in larger} == {"does not saturate"}
    words = {model: rows for model, rows in evals.items() if LOSSES[1] in rows[-1]}
    assert "pythia-v0/pythia-160m" in words
    for model, rows in words.items():
        assert detect_saturation(loss_series(model, rows, LOSSES[1])).verdict == "does not saturate"


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
    low, high = detect_saturation(series).interval
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
    assert low < detect_saturation(series).relative < high


def by_hand(loss):
    """The two statistics as the docstring of `end_and_rise` has them, one part after another."""
    n = len(loss)
    width = max(3, round(n / 4))
    level = {i: np.sort(loss[i : i + width]) for i in range(n - width + 1)}
    level = {i: (part[(width - 1) // 2] + part[width // 2]) / 2 for i, part in level.items()}
    above = [level[j] - level[i] for j in level for i in level if i + width <= j]
    last = n - width
    end = max(level[last] - level[i] for i in level if i + width <= last)
    distances = []
    for i in range(2, n - 2):
        distances.append(abs(loss[i] - (loss[i - 2] + loss[i - 1] + loss[i + 1] + loss[i + 2]) / 4))
    kept = sorted(distances)[: len(distances) - len(distances) // 5]
    return end / np.mean(kept), max(above) / np.mean(kept)


@pytest.mark.parametrize("n", [8, 9, 12, 13, 16, 27, 28, 100])
def test_the_statistics_are_those_of_their_definition(n):
    rng = np.random.default_rng(n)
    loss = 3 + 0.1 * np.cumsum(rng.standard_normal((5, n)), axis=1) + rng.standard_normal((5, n))
    found = np.stack(end_and_rise(loss), axis=1)
    np.testing.assert_allclose(found, [by_hand(one) for one in loss], rtol=1e-12)


def test_both_chances_are_those_of_noise_simulated_apart():
    rng = np.random.default_rng(11)
    fresh = rng.standard_normal((3000, 28))
    noise = fresh.copy()
    for i in range(1, 28):
        noise[:, i] = 0.2 * noise[:, i - 1] + np.sqrt(1 - 0.2**2) * fresh[:, i]
    null = np.array([by_hand(one) for one in noise])
    for seed in range(6):
        loss = 3 + 0.01 * np.random.default_rng(seed).standard_normal(28)
        found = judged(loss, steps=STEPS + STEPS[-1])  # none is of the first tenth
        expected = (null >= by_hand(loss)).mean(axis=0)
        # Four standard errors of a share of 3,000 beside one of 10,000.
        error = 4 * np.sqrt(expected * (1 - expected) * (1 / 3000 + 1 / 10_000))
        assert np.all(np.abs([found.p_end, found.p_rise] - expected) <= error)


@pytest.mark.parametrize(
    ("p_end", "p_rise", "verdict"),
    [
        (0.049, 0.9, "saturates"),
        (0.05, 0.049, "rises and recovers"),
        (0.05, 0.05, "does not saturate"),
        (None, 0.01, None),
        (0.01, None, None),
    ],
)
def test_verdicts_are_at_5_percent(p_end, p_rise, verdict):
    assert Saturation(1, 2.0, 2, 2.1, None, p_end, p_rise).verdict == verdict


def test_the_test_looks_at_the_last_nine_tenths():
    steps = np.array([0, 99, 100, 101, 1000])
    assert late_part(steps).tolist() == [False, False, True, True, True]


def test_eight_late_checkpoints_are_enough():
    assert judged(decay()[-8:]).verdict == "does not saturate"


def test_without_noise_any_rise_is_one_and_a_constant_has_none():
    assert judged(np.full(28, 3.0)).verdict == "does not saturate"
    assert judged(3.0 + 0.5 * (np.arange(28) > 14)).verdict == "saturates"
    assert judged(np.linspace(3.0, 3.1, 28)).verdict == "saturates"


def test_the_interval_ends_at_the_quantiles_of_another_resampling():
    series = with_documents(np.random.default_rng(8), rise=0.05)
    drawn = np.random.default_rng(1).integers(60, size=(20_000, 60))
    sums, tokens = series.document_losses[:, drawn].sum(-1), series.document_tokens[drawn].sum(-1)
    least, last = sums[1] / tokens, sums[2] / tokens
    resampled = np.sort((last - least) / least)
    expected, spread = resampled[[500, -501]], resampled.std()
    # A quantile of 2.5 % of 2,000 is sure to 0.06 of the spread; 5 % is 0.3 of it away.
    np.testing.assert_allclose(detect_saturation(series).interval, expected, atol=0.2 * spread)


def test_intervals_hold_the_true_rise_as_often_as_they_say():
    inside = 0
    for seed in range(100):
        series = with_documents(np.random.default_rng(seed), rise=0.05)
        true = 0.05 * series.document_tokens.sum() / series.document_losses[1].sum()
        low, high = detect_saturation(series).interval
        inside += low <= true <= high
    # 95 of 100 within three standard errors.
    assert inside >= 88


def test_a_run_is_read_as_a_series(make_run):
    run = runs.load(make_run())
    series = series_of_run(run)
    np.testing.assert_array_equal(series.steps, run.split("eval")["step"])
    assert series.document_losses is None
    for step in run.probe_steps:
        path = run.path / "probes" / f"{step:08d}.npz"
        arrays = dict(np.load(path))
        np.savez(path, **arrays, document_losses=np.full(4, step + 1.0), document_tokens=[1] * 4)
    series = series_of_run(runs.load(run.path))
    assert series.document_losses.shape == (9, 4)
    np.testing.assert_array_equal(series.document_losses[:, 0], series.steps + 1.0)
    # An evaluation whose documents were not kept leaves the series with its means alone.
    path = run.path / "probes" / f"{run.probe_steps[3]:08d}.npz"
    arrays = {name: array for name, array in np.load(path).items() if name != "document_losses"}
    np.savez(path, **arrays)
    assert series_of_run(runs.load(run.path)).document_losses is None
