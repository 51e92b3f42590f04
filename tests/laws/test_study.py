"""What a study of a law asks of its points, and what law.json and the terminal say of it."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from bottleneck.laws.budgets import FlopsPerToken, IsoFlop, compute_optimal, isoflop
from bottleneck.laws.comparison import Bootstrap, Candidate, compare
from bottleneck.laws.forms import ADDITIVE, CHINCHILLA, EFFECTIVE_WIDTH
from bottleneck.laws.points import Points
from bottleneck.laws.report import as_json, show
from bottleneck.laws.scaling_law import ScalingLaw
from bottleneck.laws.study import LawStudy, Optimum, study_points

LAW = ScalingLaw(E=1.8, A=400.0, B=2000.0, alpha=0.34, beta=0.36, gamma=0.2, form=EFFECTIVE_WIDTH)
KNOWN = {"A": 400.0, "B": 2000.0, "alpha": 0.34, "beta": 0.36, "gamma": 0.2}


def grid() -> tuple[Points, Points]:
    """Two budgets of five sizes, each with a full head and one of an eighth: ends and bests."""
    optimal = compute_optimal(LAW.constants, np.array([1e19, 1e20]))[0]
    sizes = np.repeat((optimal[:, None] * np.geomspace(0.2, 5, 5)).ravel(), 2)
    flops = np.repeat([1e19, 1e20], 10)
    ranks, widths = np.tile([512.0, 64.0], 10), np.full(20, 512.0)
    tokens = flops / 6 / sizes
    noise = np.exp(0.001 * np.random.default_rng(0).standard_normal(20))
    losses = LAW.predict(sizes, tokens, ranks, widths) * noise
    best = Points(sizes, tokens / 2, losses * 0.97, ranks, widths)
    # C is not 6·N·T, so that how it is counted matters to what is best.
    counted = flops * (sizes / 1e8) ** -0.1
    names = tuple(f"run{i}" for i in range(20))
    return Points(sizes, tokens, losses, ranks, widths, counted, names, "as made"), best


@pytest.fixture(scope="module")
def result() -> LawStudy:
    points, best = grid()
    smallest_but_two = np.sort(points.n_params)[2]
    return study_points(points, EFFECTIVE_WIDTH, KNOWN, 200, fit_from=smallest_but_two, best=best)


def test_a_law_is_fitted_to_the_models_from_a_size_on(result):
    sizes = result.points.n_params
    np.testing.assert_array_equal(result.fitted, sizes > sizes.min())
    assert result.fitted.sum() == 18


def test_gaps_are_over_all_points_at_their_end_and_at_their_best(result):
    for gaps, p in zip((result.gaps, result.gaps_of_best), grid(), strict=True):
        # The formula, written out.
        share = (p.rank / p.width) ** 0.2
        law = result.law.E + 400 / (p.n_params**0.34 * share) + 2000 / p.n_tokens**0.36
        np.testing.assert_allclose(gaps, p.loss / law - 1, rtol=1e-9)


def test_budgets_are_one_ten_and_a_hundred_times_the_largest(result):
    fitted = result.points.take(result.fitted)
    np.testing.assert_allclose(result.optimum.flops, fitted.flops.max() * np.array([1, 10, 100]))
    per_token = FlopsPerToken.of_points(fitted)
    assert result.optimum.per_token == per_token and per_token.exponent < 0.95
    sizes, tokens = compute_optimal(LAW.constants, result.optimum.flops, per_token)
    # E alone was fitted, and it moves no optimum.
    np.testing.assert_allclose(result.optimum.n_params, sizes, rtol=1e-9)
    np.testing.assert_allclose(result.optimum.n_tokens, tokens, rtol=1e-9)
    for interval, values in (
        (result.optimum.n_params_interval, sizes),
        (result.optimum.n_tokens_interval, tokens),
    ):
        np.testing.assert_allclose(interval, np.stack([values, values]), rtol=1e-9)


def test_constants_that_were_given_have_no_interval(result):
    low, high = result.interval("E")
    assert low < result.law.E < high < low * 1.01
    assert all(result.interval(name) is None for name in KNOWN)


def test_parabolas_are_of_full_heads(result):
    points = result.points
    expected = isoflop(points.take((points.rank == points.width) & result.fitted))
    np.testing.assert_array_equal(result.isoflop.n_params, expected.n_params)
    np.testing.assert_array_equal(result.isoflop.loss, expected.loss)


def test_all_forms_are_compared_where_one_rank_is_below_its_width(monkeypatch):
    points, _ = grid()
    seen = []

    def judge(form, points):  # in the place of a law, as no fit is made
        return Candidate(form, 0.0, 0.0, 0.0, 0.0)

    def compared(*arguments):
        seen.append([candidate.law.name for candidate in compare(*arguments)])
        raise InterruptedError

    monkeypatch.setattr("bottleneck.laws.comparison.fit", lambda points, form, fixed: form)
    monkeypatch.setattr("bottleneck.laws.comparison.judge", judge)
    monkeypatch.setattr("bottleneck.laws.study.compare", compared)
    one_low = np.where(np.arange(len(points)) == 3, 64.0, 512.0)
    for rank in (points.width, one_low, None):
        with pytest.raises(InterruptedError):
            study_points(replace(points, rank=rank))
    every = ["chinchilla", "additive", "effective_width", "effective_data"]
    assert seen == [["chinchilla"], every, ["chinchilla"]]


def made_up() -> LawStudy:
    """A study in which every number differs from every other."""
    sizes = np.array([1.5e6, 2.5e7, 3.5e8])
    names, note = ("small", "medium", "large"), "as made up"
    points = Points(
        sizes, sizes * 20, np.array([4.0, 3.0, 2.0]), None, None, 6 * sizes, names, note
    )
    law = ScalingLaw(
        *(1.5, 300.0, 500.0, 0.25, 0.5), form=CHINCHILLA, fixed=("B",), delta=2e-3, objective=0.125
    )
    other = ScalingLaw(1.25, 310.0, 510.0, 0.3, 0.4, 7.5, 0.6, form=ADDITIVE)
    candidates = [
        Candidate(law, 0.011, 0.022, aicc=-33.0, bic=-43.0),
        Candidate(other, 0.044, float("nan"), aicc=-35.5, bic=-39.25),
    ]
    resampled = Bootstrap(
        {k: v * np.linspace(0.9, 1.1, 1001) for k, v in law.constants.items() if k != "B"}
    )
    optimum = Optimum(
        np.array([1e20, 1e21]),
        np.array([1e8, 2e8]),
        np.array([3e9, 4e9]),
        np.array([[0.5e8, 1.5e8], [1.7e8, 2.7e8]]),
        np.array([[2.1e9, 3.1e9], [3.9e9, 4.9e9]]),
        FlopsPerToken(7.0, 0.75, 0.031),
    )
    parabolas = IsoFlop(
        *(np.array([1e19]), np.array([6e7]), np.array([np.nan])),
        *(np.array([8e9]), np.array([2.75]), 0.456, 0.0123),
    )
    gaps, of_best = np.array([0.08, -0.02, 0.003]), np.array([0.05, -0.04, 0.001])
    return LawStudy(
        points,
        np.array([False, True, True]),
        candidates,
        resampled,
        optimum,
        parabolas,
        gaps,
        of_best,
    )


def test_law_json_holds_each_number_under_its_name():
    said = as_json(made_up())
    json.dumps(said, allow_nan=False)
    assert said.pop("constants") == {
        "E": {"value": 1.5, "interval_95": pytest.approx([1.3575, 1.6425]), "is_fixed": False},
        "A": {"value": 300.0, "interval_95": pytest.approx([271.5, 328.5]), "is_fixed": False},
        "B": {"value": 500.0, "interval_95": None, "is_fixed": True},
        "alpha": {"value": 0.25, "interval_95": pytest.approx([0.22625, 0.27375])}
        | {"is_fixed": False},
        "beta": {"value": 0.5, "interval_95": pytest.approx([0.4525, 0.5475]), "is_fixed": False},
    }
    of_law = {"E": 1.5, "A": 300.0, "B": 500.0, "alpha": 0.25, "beta": 0.5}
    of_other = {"E": 1.25, "A": 310.0, "B": 510.0, "G": 7.5, "alpha": 0.3, "beta": 0.4}
    assert said == {
        "form": "chinchilla",
        "formula": "E + A/N^alpha + B/T^beta",
        "counted_as": "as made up",
        "objective": 0.125,
        "delta": 2e-3,
        "n_points": 2,
        "n_resamples": 1001,
        "held_out_error": 0.011,
        "extrapolation_error": 0.022,
        "compared": [
            {"form": "chinchilla", "held_out_error": 0.011, "extrapolation_error": 0.022}
            | {"aicc": -33.0, "bic": -43.0, "constants": of_law},
            {"form": "additive", "held_out_error": 0.044, "extrapolation_error": None}
            | {"aicc": -35.5, "bic": -39.25, "constants": {**of_other, "gamma": 0.6}},
        ],
        "compute_optimal": {
            "flops_per_token": {"factor": 7.0, "exponent": 0.75, "misfit": 0.031},
            "budgets": [
                {"flops": 1e20, "n_params": 1e8, "n_params_interval_95": [0.5e8, 1.7e8]}
                | {"n_tokens": 3e9, "n_tokens_interval_95": [2.1e9, 3.9e9]},
                {"flops": 1e21, "n_params": 2e8, "n_params_interval_95": [1.5e8, 2.7e8]}
                | {"n_tokens": 4e9, "n_tokens_interval_95": [3.1e9, 4.9e9]},
            ],
        },
        "isoflop": {"flops": [1e19], "n_params": [6e7], "n_params_se": [None], "n_tokens": [8e9]}
        | {"loss": [2.75], "exponent": 0.456, "exponent_se": 0.0123},
        "points": [
            {"name": "small", "is_fitted": False, "relative_gap": 0.08}
            | {"relative_gap_of_best": 0.05},
            {"name": "medium", "is_fitted": True, "relative_gap": -0.02}
            | {"relative_gap_of_best": -0.04},
            {"name": "large", "is_fitted": True, "relative_gap": 0.003}
            | {"relative_gap_of_best": 0.001},
        ],
    }


def test_the_terminal_shows_each_number_in_its_column():
    written = io.StringIO()
    show(made_up(), Console(file=written, width=200))
    lines = [" ".join(line.split()) for line in written.getvalue().splitlines() if line.strip()]
    assert lines == [
        "L = E + A/N^alpha + B/T^beta, 2 points",
        "as made up",
        "constant value 95 % interval",
        "E 1.5 1.3575 to 1.6425",
        "A 300 271.5 to 328.5",
        "B 500 given",
        "alpha 0.25 0.22625 to 0.27375",
        "beta 0.5 0.4525 to 0.5475",
        "error: 1.10 % on points held out, 2.20 % on the largest N from the others",
        "form held out largest N AICc BIC",
        "chinchilla 1.10 % 2.20 % +2.5 +0.0",
        "additive 4.40 % – +0.0 +3.8",
        "smaller models N last above the law best above the law",
        "small 1.50 M +8.00% +5.00%",
        "budget C best N 95 % interval best T 95 % interval",
        "1e+20 100 M 50.0 M to 170 M 3.00 G 2.10 G to 3.90 G",
        "1e+21 200 M 150 M to 270 M 4.00 G 3.10 G to 4.90 G",
        "with C = 7·N^0.750·T, which is at most 3.10 % off these points",
        # β/(α + κβ) = 0.5/(0.25 + 0.75 × 0.5)
        "IsoFLOP parabolas of 1 budgets: N ∝ C^0.456 ± 0.012; by the law C^0.800",
    ]
