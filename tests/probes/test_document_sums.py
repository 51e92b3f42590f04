"""Means over resampled documents: their values, their frequencies, their spread, their pairs."""

import numpy as np

from bottleneck.probes.document_sums import DocumentSums


def test_two_documents_give_the_three_means_of_two_draws():
    sums = DocumentSums(np.array([[30.0], [8.0]]), np.array([10, 2]))
    means = sums.resampled_means(4000)
    assert means.shape == (4000, 1)
    values, counts = np.unique(means.round(9), return_counts=True)
    # The first twice, both, the second twice; both is a mean over tokens, not over documents.
    np.testing.assert_allclose(values, [3.0, 38 / 12, 4.0], atol=1e-9)
    # Four standard errors of a share of 4,000.
    np.testing.assert_allclose(counts / 4000, [0.25, 0.5, 0.25], atol=4 * 0.5 / np.sqrt(4000))


def test_resampled_means_spread_as_the_standard_errors_say():
    rng = np.random.default_rng(0)
    n_tokens = rng.integers(50, 150, 300)
    totals = n_tokens[:, None] * (3 + rng.standard_normal((300, 2)) * [0.1, 1.0])
    sums = DocumentSums(totals, n_tokens)
    means = sums.resampled_means(4000)
    # A spread from 4,000 resamples is sure to 1.1 %.
    np.testing.assert_allclose(means.std(axis=0), sums.standard_errors(), rtol=0.045)
    centre = np.abs(means.mean(axis=0) - sums.means())
    assert np.all(centre < 0.1 * sums.standard_errors())


def test_all_quantities_share_each_draw():
    rng = np.random.default_rng(1)
    n_tokens, totals = rng.integers(1, 9, 20), rng.standard_normal(20)
    # Of each token the second value is twice the first and 5 more.
    sums = DocumentSums(np.stack([totals, 2 * totals + 5 * n_tokens], axis=1), n_tokens)
    first, second = sums.resampled_means(100).T
    np.testing.assert_allclose(second, 2 * first + 5, rtol=1e-12)
    assert len(np.unique(first)) > 90


def test_a_seed_gives_the_same_resamples_and_another_gives_others():
    sums = DocumentSums(np.arange(12.0).reshape(6, 2), np.arange(1, 7))
    first, again, other = (sums.resampled_means(10, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
