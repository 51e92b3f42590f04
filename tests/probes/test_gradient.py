"""What survives of the logit gradient, against projections written out in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bottleneck.model.head import HeadFactors
from bottleneck.probes import gradient, truncation

VOCAB, ROWS, D = 300, 304, 16


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("rank", [None, 5])
def test_the_share_of_the_norm_in_the_column_space(rank):
    source = np.random.default_rng(0)
    rows = source.standard_normal((ROWS, rank or D)) * np.geomspace(1, 0.01, rank or D)
    basis = None if rank is None else source.standard_normal((rank, D))
    hidden = source.standard_normal((3, 20, D))
    targets = source.integers(0, VOCAB, (3, 20))
    weights = source.integers(0, 2, (3, 20)).astype(float)
    W = (rows if basis is None else rows @ basis)[:VOCAB]

    g = softmax(hidden @ W.T) - np.eye(VOCAB)[targets]
    g = g[weights > 0]
    columns = np.linalg.svd(W, full_matrices=False)[0][:, : rank or D]
    expected = np.sqrt(((g @ columns) ** 2).sum() / (g**2).sum())

    factors = HeadFactors(jnp.float32(rows), None if basis is None else jnp.float32(basis), VOCAB)
    inverse = np.float32(gradient.inverse_map(truncation.plain(W)))
    survival = jax.jit(functools.partial(gradient.survival, chunk=7))
    found = survival(
        factors, jnp.float32(hidden), jnp.int32(targets), jnp.float32(weights), inverse
    )
    assert 0 < expected < 0.6
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_direction_that_float32_cannot_resolve_takes_no_part():
    source = np.random.default_rng(0)
    left = np.linalg.qr(source.standard_normal((VOCAB, D)))[0]
    right = np.linalg.qr(source.standard_normal((D, D)))[0]
    W = 20 * (left * np.append(np.ones(D - 1), 1e-7)) @ right.T
    hidden = source.standard_normal((3, 20, D))
    targets = source.integers(0, VOCAB, (3, 20))
    g = softmax(hidden @ W.T) - np.eye(VOCAB)[targets]
    expected = np.sqrt(((g @ left[:, : D - 1]) ** 2).sum() / (g**2).sum())
    found = gradient.survival(
        HeadFactors(jnp.float32(W), None, VOCAB),
        jnp.float32(hidden),
        jnp.int32(targets),
        jnp.ones((3, 20)),
        np.float32(gradient.inverse_map(truncation.plain(W))),
        chunk=60,
    )
    assert found == pytest.approx(expected, rel=1e-4)


def test_all_of_it_survives_where_the_head_has_as_many_columns_as_rows():
    W = np.random.default_rng(0).standard_normal((D, D))
    inverse = np.float32(gradient.inverse_map(truncation.plain(W)))
    hidden = jnp.float32(np.random.default_rng(1).standard_normal((2, 8, D)))
    found = gradient.survival(
        HeadFactors(jnp.float32(W), None),
        hidden,
        jnp.zeros((2, 8), jnp.int32),
        jnp.ones((2, 8)),
        inverse,
        chunk=16,
    )
    assert found == pytest.approx(1, rel=1e-4)
