"""Heads: what a factored one can represent, and what a fresh one's logits look like."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bottleneck.config import ModelConfig
from bottleneck.model.head import FactoredHead, FullHead, HeadFactors, make_head

SMALL = dict(vocab_size=300, d_model=32, n_heads=4, n_layers=2)


def random(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_a_factored_head_at_full_rank_can_equal_any_full_head():
    W = np.asarray(random(0, 384, 32), np.float64)
    left, sigma, right = np.linalg.svd(W, full_matrices=False)
    factored = HeadFactors(jnp.float32(left * sigma), jnp.float32(right))
    hidden = random(1, 50, 32)
    expected = np.asarray(hidden, np.float64) @ W.T
    scale = np.abs(expected).max()
    np.testing.assert_allclose(factored.logits(hidden), expected, atol=1e-5 * scale)
    np.testing.assert_allclose(
        HeadFactors(jnp.float32(W), None).logits(hidden), expected, atol=1e-5 * scale
    )


def test_the_logits_of_a_factored_head_have_rank_r():
    head = make_head(ModelConfig(**SMALL, head_rank=5), nnx.Rngs(0))
    logits = np.asarray(head.factors().logits(random(1, 200, 32)), np.float64)
    sigma = np.linalg.svd(logits, compute_uv=False)
    assert sigma[4] > 1e-2 * sigma[0]
    assert sigma[5] < 1e-5 * sigma[0]


@pytest.mark.parametrize("rank", [2, 8, 32])
def test_a_matched_head_has_the_logit_variance_of_a_full_one(rank):
    # 4,096 rows × 64 hidden states, averaged over 8 seeds: for R = 2 the variance of W's entries
    # has a relative standard error of about 10 %, from the few entries of B.
    config = ModelConfig(vocab_size=4096, d_model=32, n_heads=4, n_layers=2)
    hidden = random(9, 64, 32)

    def variance(**fields):
        ratios = []
        for seed in range(8):
            ranked = ModelConfig(vocab_size=4096, d_model=32, n_heads=4, n_layers=2, **fields)
            ratios.append(np.var(make_head(ranked, nnx.Rngs(seed)).factors().logits(hidden)))
        return np.mean(ratios)

    expected = config.weight_std**2 * 32  # of w·h for hidden states of unit variance
    np.testing.assert_allclose(variance(), expected, rtol=0.05)
    np.testing.assert_allclose(variance(head_rank=rank), expected, rtol=0.3)


def test_normal_factors_are_standard_normal():
    factors = make_head(
        ModelConfig(**SMALL, head_rank=16, head_init="normal"), nnx.Rngs(0)
    ).factors()
    np.testing.assert_allclose(np.std(factors.rows), 1.0, rtol=0.05)
    np.testing.assert_allclose(np.std(factors.basis), 1.0, rtol=0.1)


@pytest.mark.parametrize(
    ("tied", "rank", "kind"),
    [
        (False, None, FullHead),
        (False, 4, FactoredHead),
        (True, None, FullHead),
        (True, 4, FactoredHead),
    ],
)
def test_the_config_chooses_the_kind(tied, rank, kind):
    head = make_head(ModelConfig(**SMALL, tie_embeddings=tied, head_rank=rank), nnx.Rngs(0))
    assert type(head) is kind


@pytest.mark.parametrize("rank", [None, 4])
def test_a_tied_head_embeds_with_the_rows_it_scores_with(rank):
    head = make_head(ModelConfig(**SMALL, tie_embeddings=True, head_rank=rank), nnx.Rngs(0))
    tokens = jnp.array([3, 0, 299])
    scores_of_unit_vectors = head.factors().logits(jnp.eye(32))
    np.testing.assert_allclose(head.embed(tokens), scores_of_unit_vectors[:, tokens].T, atol=1e-6)
