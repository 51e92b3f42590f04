"""The law of loss by rank: its range, its limits, its intervals, against scipy and resampling."""

import numpy as np
import pytest
from scipy.optimize import least_squares

from bottleneck.laws.rank import RankLaw, fit_rank

RANKS = np.array([2, 4, 8, 16, 32, 64])


def scipys(ranks, losses, start=(1.0, 1.0, 0.5)):
    """The same least squares within the same limits, by another method."""
    found = least_squares(
        lambda x: x[0] + x[1] * ranks ** -x[2] - losses,
        np.array(start),
        bounds=([0, 0, 0.05], [np.inf, np.inf, 5]),
        **{"xtol": 1e-14, "ftol": 1e-14, "gtol": 1e-14, "max_nfev": 5000},
    )
    return found.x


@pytest.mark.parametrize(
    ("floor", "scale", "exponent"),
    [(2.0, 3.0, 0.06), (2.0, 3.0, 4.8), (2.0, 0.5, 0.5)],
    ids=["flat", "steep", "usual"],
)
def test_exponents_of_the_whole_range_are_found(floor, scale, exponent):
    law = fit_rank(RANKS, RankLaw(floor, scale, exponent)(RANKS))
    assert law.exponent == pytest.approx(exponent, rel=1e-5)
    assert law.residual < 1e-6


@pytest.mark.parametrize("exponent", [0.03, 7.0])
def test_exponents_beyond_the_range_end_at_its_ends(exponent):
    law = fit_rank(RANKS, RankLaw(2.0, 3.0, exponent)(RANKS))
    assert law.exponent == pytest.approx(np.clip(exponent, 0.05, 5.0), rel=1e-9)


def test_neither_the_floor_nor_the_scale_is_below_zero():
    sinking = 3.0 * RANKS**-0.5 - 0.2
    law = fit_rank(RANKS, sinking)
    expected = scipys(RANKS, sinking)
    assert law.floor == 0 and expected[0] == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose((law.scale, law.exponent), expected[1:], rtol=1e-4)
    rising = fit_rank(RANKS, 3.0 - 1.0 * RANKS**-0.5)
    assert rising.scale == 0 and rising.floor == pytest.approx(np.mean(3.0 - RANKS**-0.5))


def test_the_residual_is_the_largest_distance_from_a_loss():
    losses = RankLaw(3.0, 2.0, 0.8)(RANKS) + np.array([0, 0.01, -0.02, 0.05, -0.03, 0.01])
    law = fit_rank(RANKS, losses)
    floor, scale, exponent = scipys(RANKS, losses)
    distances = np.abs(floor + scale * RANKS**-exponent - losses)
    assert law.residual == pytest.approx(distances.max(), rel=1e-4)
    assert distances.max() > 1.5 * distances.mean()


def test_intervals_are_those_of_documents_drawn_by_another_generator():
    rng = np.random.default_rng(3)
    tokens = rng.integers(20, 400, 80)
    means = RankLaw(3.0, 2.0, 0.6)(RANKS) + 0.5 * rng.standard_normal((80, 1))
    sums = (means + 0.1 * rng.standard_normal((80, 6))) * tokens[:, None]
    found = fit_rank(RANKS, sums.sum(0) / tokens.sum(), sums, tokens)
    laws = []
    for drawn in np.random.default_rng(9).integers(80, size=(600, 80)):
        losses = sums[drawn].sum(0) / tokens[drawn].sum()
        laws.append(scipys(RANKS, losses, (3.0, 2.0, 0.6)))
    expected = np.quantile(laws, [0.025, 0.975], axis=0).T
    for (low, high), name in zip(expected, ("floor", "scale", "exponent"), strict=True):
        # Its ends are sure to 3 % of the width each way; those of 90 % are 8 % of it further in.
        np.testing.assert_allclose(found.intervals[name], (low, high), atol=0.06 * (high - low))
