"""Nested maps against the truncations that they stand for."""

import numpy as np
import pytest

from bottleneck.probes import truncation

V, D, N = 200, 12, 500


@pytest.fixture
def problem():
    source = np.random.default_rng(0)
    W = source.standard_normal((V, D)) * np.geomspace(3, 0.1, D)
    hidden = source.standard_normal((N, D)) @ np.diag(np.geomspace(0.1, 2, D)) + 0.5
    return W, hidden


def cut_to(W, cut, r):
    return W @ cut.decode[:, :r] @ cut.encode[:, :r].T


def test_plain_is_the_svd_at_every_rank(problem):
    W, _ = problem
    left, values, right = np.linalg.svd(W, full_matrices=False)
    cut = truncation.plain(W)
    np.testing.assert_allclose(cut.singular_values, values)
    for r in range(1, D + 1):
        np.testing.assert_allclose(
            cut_to(W, cut, r), (left[:, :r] * values[:r]) @ right[:r], atol=1e-12
        )


def test_whitened_leaves_the_least_logit_error_and_says_how_much(problem):
    W, hidden = problem
    moment = hidden.T @ hidden / N
    plain, whitened = truncation.plain(W), truncation.whitened(W, moment)
    # Eckart and Young on the matrix of logits itself.
    values = np.linalg.svd(hidden @ W.T, compute_uv=False) / np.sqrt(N)
    for r in range(1, D + 1):
        errors = {
            name: np.sum((hidden @ (W - cut_to(W, cut, r)).T) ** 2) / N
            for name, cut in (("plain", plain), ("whitened", whitened))
        }
        least = np.sum(values[r:D] ** 2)
        assert errors["whitened"] == pytest.approx(least, rel=1e-9, abs=1e-18)
        assert errors["whitened"] <= errors["plain"] * (1 + 1e-9) + 1e-18
        assert np.sum(whitened.singular_values[r:] ** 2) == pytest.approx(least, abs=1e-12)


def test_directions_without_hidden_states_do_no_harm(problem):
    W, hidden = problem
    hidden = hidden * (np.arange(D) < D - 3)
    cut = truncation.whitened(W, hidden.T @ hidden / N)
    np.testing.assert_allclose(hidden @ cut_to(W, cut, D - 3).T, hidden @ W.T, atol=1e-6)


def test_centred_maps_serve_the_head_as_it_is(problem):
    W, hidden = problem
    W = W + 5 * np.random.default_rng(1).standard_normal(D)  # a large mean row
    centred = W - W.mean(axis=0)
    cut = truncation.plain(centred)
    for r in (1, 4, D):
        logits = hidden @ cut_to(W, cut, r).T
        expected = hidden @ cut_to(centred, cut, r).T
        # The same but for what every token's logits share.
        difference = logits - expected
        np.testing.assert_allclose(difference, difference[:, :1] + np.zeros(V), atol=1e-9)


def test_a_core_with_fewer_rows_than_columns_has_all_maps():
    cut = truncation.plain(np.random.default_rng(0).standard_normal((3, D)))
    assert cut.encode.shape == cut.decode.shape == (D, D)
    np.testing.assert_allclose(cut.singular_values[3:], 0, atol=1e-12)
