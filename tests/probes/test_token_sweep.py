"""Every token's loss at every rank, and what is predicted of it, against float64 numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from bottleneck.config import MeshConfig
from bottleneck.model.head import HeadFactors
from bottleneck.parallel.mesh import make_mesh, partition_spec
from bottleneck.probes import truncation
from bottleneck.probes.document_sums import DocumentSums
from bottleneck.probes.gap import frequency_classes, rank_sweep
from bottleneck.probes.token_sweep import token_sweep

# Rows are no multiple of a tile's, tokens of 4 sequences neither; the last rows are padding.
VOCAB, ROWS, D, B, L = 900, 904, 24, 4, 73
RANKS = (1, 5, 12, D)
TOLERANCE = dict(rtol=2e-5, atol=2e-5)


def problem(rank=None):
    """(factors, hidden, targets, W): a head with structure, and hidden states that it fits."""
    source = np.random.default_rng(0)
    rows = source.standard_normal((ROWS, rank or D)) * np.geomspace(2, 0.2, rank or D) + 0.3
    basis = None if rank is None else source.standard_normal((rank, D)) / rank**0.5
    hidden = source.standard_normal((B, L, D)) * np.geomspace(1, 0.3, D)
    W = rows if basis is None else rows @ basis
    noise = source.gumbel(size=(B, L, VOCAB))
    targets = np.argmax(hidden @ W[:VOCAB].T + noise, axis=-1)
    factors = HeadFactors(jnp.float32(rows), None if basis is None else jnp.float32(basis), VOCAB)
    W = np.asarray(factors.rows, np.float64)
    W = W if basis is None else W @ np.asarray(factors.basis, np.float64)
    return factors, jnp.float32(hidden), jnp.int32(targets), W[:VOCAB]


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def reference(W, hidden, targets, cut):
    """The fields of `token_sweep` for every rank, from logits written out."""
    hidden, targets = np.asarray(hidden, np.float64), np.asarray(targets)[..., None]
    z = hidden @ W.T
    log_p = log_softmax(z)
    p = np.exp(log_p)
    found = []
    for r in RANKS:
        z_r = (hidden @ cut.encode[:, :r]) @ (W @ cut.decode[:, :r]).T
        log_p_r, change = log_softmax(z_r), z_r - z
        mean = (p * change).sum(-1)
        found.append(
            {
                "loss": -np.take_along_axis(log_p_r, targets, -1)[..., 0],
                "first_order": mean - np.take_along_axis(change, targets, -1)[..., 0],
                "second_order": (p * (change - mean[..., None]) ** 2).sum(-1) / 2,
                "kl": (p * (log_p - log_p_r)).sum(-1),
                "agreement": z_r.argmax(-1) == z.argmax(-1),
            }
        )
    return {name: np.stack([each[name] for each in found], axis=-1) for name in found[0]}


def cuts(W, hidden):
    states = np.asarray(hidden, np.float64).reshape(-1, D)
    return {
        "plain": truncation.plain(W),
        "centred": truncation.plain(W - W.mean(axis=0)),
        "whitened": truncation.whitened(W, states.T @ states / len(states)),
    }


def maps(cut):
    return np.float32(cut.encode), np.float32(cut.decode)


@pytest.mark.parametrize("rank", [None, 7])
@pytest.mark.parametrize("kind", ["plain", "whitened"])
def test_every_token_at_every_rank(rank, kind):
    factors, hidden, targets, W = problem(rank)
    cut = cuts(W, hidden)[kind]
    sweep = jax.jit(functools.partial(token_sweep, ranks=RANKS))
    losses, predictions = sweep(factors, hidden, targets, *maps(cut))
    expected = reference(W, hidden, targets, cut)
    found = {"loss": losses, **predictions._asdict()}
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, **TOLERANCE, err_msg=name)


@pytest.mark.parametrize(
    "sizes",
    [
        (1, 2, 2),
        (2, 1, 2),
        *(pytest.param(s, marks=pytest.mark.slow) for s in ((1, 4, 1), (2, 2, 1), (1, 1, 4))),
    ],
)
@pytest.mark.parametrize("rank", [None, 7])
def test_sharded_equals_unsharded(rank, sizes):
    factors, hidden, targets, W = problem(rank)
    cut = maps(truncation.plain(W))
    sweep = functools.partial(token_sweep, ranks=RANKS)
    whole = jax.jit(sweep)(factors, hidden, targets, *cut)
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[:4])

    def place(array, *axes):
        return jax.device_put(array, NamedSharding(mesh, partition_spec(axes)))

    with jax.set_mesh(mesh):
        placed = HeadFactors(
            place(factors.rows, "vocab", "embed" if rank is None else "rank"),
            None if rank is None else place(factors.basis, "rank", "embed"),
            VOCAB,
        )
        found = jax.jit(sweep)(placed, place(hidden, "batch"), place(targets, "batch"), *cut)
    assert len(found[0].sharding.device_set) == 4
    np.testing.assert_allclose(found[0], whole[0], **TOLERANCE)
    for name in whole[1]._fields:
        a, b = getattr(found[1], name), getattr(whole[1], name)
        np.testing.assert_allclose(a, b, **TOLERANCE, err_msg=name)


@pytest.mark.parametrize(
    ("kind", "rank"),
    [
        *(("plain", None), ("plain", 7), ("centred", None), ("whitened", None)),
        *(pytest.param(kind, 7, marks=pytest.mark.slow) for kind in ("centred", "whitened")),
    ],
)
def test_means_are_those_of_separate_float64_evaluations_to_1e_6(kind, rank):
    factors, hidden, targets, W = problem(rank)
    expected = reference(W, hidden, targets, cuts(W, hidden)[kind])
    gaps = expected["loss"] - expected["loss"][..., -1:]
    found = rank_sweep(factors, hidden, targets, RANKS[:-1], kind)
    np.testing.assert_allclose(found.loss, expected["loss"].mean((0, 1)), atol=1e-6)
    np.testing.assert_allclose(found.gaps.gap, gaps.mean((0, 1)), atol=1e-6)
    assert found.gaps.gap[-1] == 0
    by_sequence = gaps.mean(axis=1)  # each a document; all are of one length
    np.testing.assert_allclose(
        found.gaps.gap_se, by_sequence.std(axis=0, ddof=1) / B**0.5, rtol=1e-4, atol=1e-7
    )
    np.testing.assert_allclose(
        found.gaps.predicted,
        (expected["first_order"] + expected["second_order"]).mean((0, 1)),
        rtol=1e-5,
        atol=1e-6,
    )
    parts = found.gaps.rare + found.gaps.middle + found.gaps.frequent
    np.testing.assert_allclose(parts, found.gaps.gap, atol=1e-12)


@pytest.mark.parametrize("kind", ["plain", "whitened"])
def test_only_tokens_that_count_are_in_any_mean_and_documents_may_be_unequal(kind):
    factors, hidden, targets, W = problem()
    source = np.random.default_rng(4)
    weights = source.integers(0, 2, (B, L))
    hidden = jnp.where(weights[..., None] > 0, hidden, 3 * hidden[..., ::-1])
    targets = jnp.where(weights > 0, targets, 7)  # the most frequent token, if it counted
    documents = np.sort(source.choice(9, B * L, p=np.arange(9) / 36)).reshape(B, L)
    counts = weights > 0
    states = np.asarray(hidden, np.float64)[counts]
    cut = truncation.plain(W)
    if kind == "whitened":
        cut = truncation.whitened(W, states.T @ states / len(states))
    expected = {n: v[counts] for n, v in reference(W, hidden, targets, cut).items()}
    found = rank_sweep(
        factors,
        hidden,
        targets,
        RANKS[:-1],
        kind,
        weights_BxL=weights,
        documents_BxL=documents,
    )
    full = expected["loss"][:, -1]
    gaps, y, of = expected["loss"] - full[:, None], np.asarray(targets)[counts], documents[counts]
    occurrences = np.bincount(y, minlength=VOCAB)
    order = sorted(range(VOCAB), key=lambda token: (occurrences[token], token))
    rarer = {token: occurrences[order[:i]].sum() for i, token in enumerate(order)}
    thirds = np.array([3 * rarer[token] // len(y) for token in y])

    def clustered_error(values):
        residuals = values - values.mean(axis=0)
        sums = np.array([residuals[of == d].sum(axis=0) for d in set(of)])
        return np.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum(axis=0)) / len(values)

    means = {name: values.mean(axis=0) for name, values in expected.items()}
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    assert found.ranks.tolist() == list(RANKS)
    close(found.loss, means["loss"])
    close(found.gaps.gap, gaps.mean(axis=0))
    close(found.gaps.gap_se, clustered_error(gaps))
    close([found.full_loss, found.full_loss_se], [full.mean(), clustered_error(full)])
    close(found.document_losses, [full[of == d].sum() for d in np.unique(of)])
    close(found.document_tokens, [(of == d).sum() for d in np.unique(of)])
    by_class = [found.gaps.rare, found.gaps.middle, found.gaps.frequent]
    close(by_class, [gaps[thirds == i].sum(axis=0) / len(gaps) for i in range(3)])
    close(found.gaps.first_order, means["first_order"])
    close(found.gaps.second_order, means["second_order"])
    close(found.gaps.kl, means["kl"])
    close(found.gaps.agreement, means["agreement"])


def test_one_document_has_no_standard_error():
    sums = DocumentSums.of(np.array([[1.0], [2.0]]), np.array([5, 5]))
    assert sums.means() == [1.5] and np.isnan(sums.standard_errors()).all()


def test_the_first_and_second_order_predict_small_gaps():
    """Of a head whose last direction is small, and by how much falls with the cube of it."""
    errors = []
    for size in (0.1, 0.05):
        source = np.random.default_rng(2)
        left = np.linalg.qr(source.standard_normal((VOCAB, D)))[0]
        W = 20 * left * np.append(np.ones(D - 1), size)
        hidden = jnp.float32(source.standard_normal((B, L, D)))
        targets = jnp.int32(source.integers(0, VOCAB, (B, L)))
        cut = truncation.plain(W)
        factors = HeadFactors(jnp.float32(W), None, VOCAB)
        sweep = functools.partial(token_sweep, ranks=(D - 1, D))
        losses, found = jax.jit(sweep)(factors, hidden, targets, *maps(cut))
        gap = np.float64(losses[..., 0]) - losses[..., 1]
        predicted = np.float64(found.first_order[..., 0]) + found.second_order[..., 0]
        errors.append(np.abs(gap - predicted).mean() / np.abs(gap).mean())
    assert errors[0] < 0.01
    assert errors[1] < errors[0] / 2.5  # a third-order term over a first-order one: a quarter


def test_frequency_classes_have_a_third_of_the_text_each():
    counts = np.array([5, 1000, 500, 1, 494, 0, 1000])
    classes = frequency_classes(np.arange(7), counts)
    # In order 0, 1, 5, 494, 500, 1000, 1000: the fifth starts at 500 of 3,000.
    assert classes.tolist() == [0, 1, 0, 0, 0, 0, 2]
    text = np.random.default_rng(0).zipf(1.2, 50_000).clip(max=2000) - 1
    shares = np.bincount(frequency_classes(text, np.bincount(text))) / len(text)
    assert np.abs(shares - 1 / 3).max() < 0.15  # the most frequent token alone is a fifth


def test_a_rank_that_the_head_cannot_have_or_a_misspelt_truncation_is_an_error():
    factors, hidden, targets, _ = problem()
    with pytest.raises(ValueError, match="between 1 and 24"):
        rank_sweep(factors, hidden, targets, (1, 25))
    with pytest.raises(ValueError, match="'whitend' is none of plain, centred, whitened"):
        rank_sweep(factors, hidden, targets, (1,), "whitend")
