"""The geometry of hidden states, against closed forms and plain numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from bottleneck.probes import geometry


def mean_cosine(hidden):
    units = hidden / np.linalg.norm(hidden, axis=1, keepdims=True)
    cosines = units @ units.T
    n = len(units)
    return (cosines.sum() - np.trace(cosines)) / (n * (n - 1))


@pytest.fixture
def states():
    """(hidden [6, 5, 8] with a mean, weights): float32."""
    source = np.random.default_rng(0)
    hidden = source.standard_normal((6, 5, 8)) + 2 * source.standard_normal(8)
    weights = source.integers(0, 2, (6, 5))
    return jnp.float32(hidden), jnp.float32(weights)


def test_means_and_cosines_of_the_tokens_that_count(states):
    hidden, weights = states
    counted = np.asarray(hidden, np.float64)[np.asarray(weights) > 0]
    np.testing.assert_allclose(geometry.mean(hidden, weights), counted.mean(axis=0), rtol=1e-5)
    assert geometry.anisotropy(hidden, weights) == pytest.approx(mean_cosine(counted), rel=1e-5)
    raw, centred = geometry.layer_anisotropy(np.asarray(geometry.layer_sums(hidden, weights))[None])
    assert raw == pytest.approx(mean_cosine(counted), rel=1e-5)
    assert centred == pytest.approx(mean_cosine(counted - counted.mean(axis=0)), rel=1e-4)
    moment = geometry.second_moment(hidden, weights)
    np.testing.assert_allclose(moment, counted.T @ counted / len(counted), rtol=1e-5, atol=1e-5)
    covariance = geometry.covariance(moment, geometry.mean(hidden, weights))
    np.testing.assert_allclose(covariance, np.cov(counted.T, bias=True), rtol=1e-4, atol=1e-5)


def test_the_mean_norm_is_of_the_tokens_that_count(states):
    hidden, weights = states
    norms = np.sqrt(np.sum(np.asarray(hidden, np.float64)[np.asarray(weights) > 0] ** 2, axis=1))
    assert norms.std() > 0.1 * norms.mean()
    assert geometry.mean_norm(hidden, weights) == pytest.approx(norms.mean(), rel=1e-6)


def test_one_array_has_the_sums_of_a_layer(states):
    hidden, weights = states
    hidden = hidden.at[0, 0].set(0.0)  # without a direction: counts, and adds none
    counted = np.asarray(hidden, np.float64)[np.asarray(weights) > 0]
    norms = np.linalg.norm(counted, axis=1, keepdims=True)
    units = counted / np.where(norms > 0, norms, 1.0)
    n, centred = len(counted), counted - counted.mean(axis=0)
    pairs = n * (n - 1)
    expected = [*units.sum(axis=0), n, pairs * mean_cosine(centred), pairs]
    found = geometry.layer_sums(hidden, np.asarray(weights))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_batch_in_which_nothing_counts_leaves_no_trace(states):
    hidden, weights = states
    assert not np.any(geometry.layer_sums(hidden, 0 * weights))


def test_anisotropy_of_known_arrangements():
    same, opposite = jnp.ones((10, 4)), jnp.float32([[1, 0], [-1, 0]])
    assert geometry.anisotropy(same) == pytest.approx(1)
    assert geometry.anisotropy(opposite) == pytest.approx(-1)
    assert geometry.anisotropy(jnp.eye(7)) == pytest.approx(0, abs=1e-7)


def test_iso_score_goes_from_0_to_1_and_counts_directions():
    width = 50
    assert geometry.iso_score(3 * np.eye(width)) == pytest.approx(1)
    assert geometry.iso_score(np.diag(np.eye(width)[0])) == pytest.approx(0, abs=1e-12)
    # Rudman et al. 2022, section 4: k dimensions used evenly of n score (k − 1)/(n − 1).
    for k in (5, 20, 49):
        even = np.diag((np.arange(width) < k).astype(float))
        assert geometry.iso_score(even) == pytest.approx((k - 1) / (width - 1))
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((width, width)))[0]
    some = np.diag(np.geomspace(1, 0.01, width))
    turned = geometry.iso_score(rotation @ some @ rotation.T)
    assert turned == pytest.approx(geometry.iso_score(some))
