"""A whole probe against float64 numpy written out plainly, from the same hidden states."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from bottleneck.config import Config, DataConfig, MeshConfig, ModelConfig, ProbeConfig, TrainConfig
from bottleneck.model import transformer
from bottleneck.parallel.mesh import make_mesh
from bottleneck.probes.gap import frequency_classes
from bottleneck.probes.prober import Prober

D, VOCAB, RANKS = 32, 300, (1, 4, 16, 32)
CONFIG = Config(
    data=DataConfig(tokenizer_vocab_size=VOCAB),
    # The vocabulary is padded to 384 rows, and no chunk of tokens divides the windows.
    model=ModelConfig(vocab_size=VOCAB, d_model=D, n_heads=4, n_layers=2, loss_chunk=35),
    mesh=MeshConfig(1, 1, 1),
    train=TrainConfig(batch_size=4, sequence_length=16),
    probe=ProbeConfig(tokens=160, ranks=RANKS),
)
COUNTS = np.random.default_rng(1).zipf(1.5, VOCAB).clip(max=10_000)


def held_out():
    """Ten windows, which micro-batches of four do not divide, the last in part filling."""
    source = np.random.default_rng(0)
    windows = source.integers(0, VOCAB, (10, 17), dtype=np.int32)
    weights = np.ones((10, 16), np.float32)
    weights[-1, 5:] = 0
    documents = np.sort(source.integers(0, 7, (10, 16)).reshape(-1)).reshape(10, 16)
    return {
        "inputs": windows[:, :-1],
        "targets": windows[:, 1:],
        "weights": weights,
        "documents": documents.astype(np.int32),
    }


@pytest.fixture(scope="module", params=[None, 6], ids=["full", "rank 6"])
def probed(request):
    """(record, W [VOCAB, D], hidden states of each depth, held-out tokens), arrays in float64."""
    config = dataclasses.replace(
        CONFIG, model=dataclasses.replace(CONFIG.model, head_rank=request.param)
    )
    params = jax.jit(lambda: transformer.init_params(config.model, jax.random.key(1)))()
    # A mean row and a strong direction, as trained heads have; centring must matter.
    params["head"]["rows"] = params["head"]["rows"] + 0.3
    params["final_norm"]["bias"] = params["final_norm"]["bias"] + 0.5
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    tokens = held_out()
    with jax.set_mesh(mesh):
        record = Prober(config, mesh, tokens, COUNTS).measure(params)
    model = nnx.merge(transformer.graph(config.model), params)
    _, depths = jax.jit(lambda inputs: model(inputs, observe=lambda h: h))(tokens["inputs"])
    factors = model.head.factors()
    W = np.asarray(factors.rows, np.float64)
    if factors.basis is not None:
        W = W @ np.asarray(factors.basis, np.float64)
    return record, W[:VOCAB], np.asarray(depths, np.float64), tokens


def cross_entropies(logits, targets):
    top = logits.max(axis=1, keepdims=True)
    lse = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
    return lse - logits[np.arange(len(targets)), targets]


def counted(tokens, array):
    """The rows of an array [10, 16, ...] whose token counts."""
    return array[tokens["weights"] > 0]


def test_singular_values_and_what_is_made_of_them(probed):
    record, W, _, _ = probed
    rank = np.linalg.matrix_rank(W)
    for suffix, matrix in (("", W), ("_centred", W - W.mean(axis=0))):
        sigma = np.linalg.svd(matrix, compute_uv=False)
        found = record.arrays[f"singular_values{suffix}"]
        np.testing.assert_allclose(found[:rank], sigma[:rank], rtol=1e-5)
        np.testing.assert_allclose(found[rank:], 0, atol=1e-6 * sigma[0])
        p = sigma[:rank] ** 2 / (sigma**2).sum()
        entropy = np.log(D) + (p * np.log(p)).sum()
        assert record.scalars[f"singular_entropy{suffix}"] == pytest.approx(entropy, rel=1e-5)
    sigma = np.linalg.svd(W, compute_uv=False)[:rank]
    q = sigma / sigma.sum()
    assert record.scalars["effective_rank"] == pytest.approx(
        np.exp(-(q * np.log(q)).sum()), rel=1e-5
    )
    assert record.scalars["stable_rank"] == pytest.approx(
        (sigma**2).sum() / sigma[0] ** 2, rel=1e-5
    )
    for r in RANKS:
        error = np.sqrt((sigma[r:] ** 2).sum() / (sigma**2).sum())
        assert record.scalars[f"w_error/{r}"] == pytest.approx(error, rel=1e-5, abs=1e-6)


def test_losses_of_the_truncated_heads(probed):
    record, W, depths, tokens = probed
    hidden, targets = counted(tokens, depths[-1]), counted(tokens, tokens["targets"])
    full = cross_entropies(hidden @ W.T, targets)
    assert record.evaluation["loss"] == pytest.approx(full.mean(), rel=1e-6)
    left, sigma, right = np.linalg.svd(W, full_matrices=False)
    for i, r in enumerate(RANKS):
        truncated = (left[:, :r] * sigma[:r]) @ right[:r]
        losses = cross_entropies(hidden @ truncated.T, targets)
        assert record.arrays["loss_at_rank"][i] == pytest.approx(losses.mean(), rel=1e-5)
        gap = (losses - full).mean()
        assert record.scalars[f"gap/plain/{r}"] == pytest.approx(gap, rel=1e-5, abs=2e-6)


def test_the_whitened_truncation_is_the_best_in_mean_square_and_its_losses_are_right(probed):
    record, W, depths, tokens = probed
    hidden, targets = counted(tokens, depths[-1]), counted(tokens, tokens["targets"])
    # Independently: the best rank-r approximation of the matrix of logits itself.
    left, sigma, right = np.linalg.svd(hidden @ W.T, full_matrices=False)
    full = cross_entropies(hidden @ W.T, targets)
    for r in RANKS:
        losses = cross_entropies((left[:, :r] * sigma[:r]) @ right[:r], targets)
        gap = (losses - full).mean()
        assert record.scalars[f"gap/whitened/{r}"] == pytest.approx(gap, rel=1e-4, abs=5e-6)


def test_the_gap_at_full_rank_is_zero(probed):
    record = probed[0]
    for kind in ("plain", "whitened"):
        assert abs(record.scalars[f"gap/{kind}/{D}"]) < 1e-6


def test_standard_errors_are_those_of_document_means(probed):
    record, W, depths, tokens = probed
    hidden, targets = counted(tokens, depths[-1]), counted(tokens, tokens["targets"])
    documents = counted(tokens, tokens["documents"])
    losses = cross_entropies(hidden @ W.T, targets)
    residuals = losses - losses.mean()
    sums = np.array([residuals[documents == d].sum() for d in np.unique(documents)])
    variance = len(sums) / (len(sums) - 1) * (sums**2).sum()
    assert record.evaluation["loss_se"] == pytest.approx(variance**0.5 / len(losses), rel=1e-5)


def test_what_the_theory_needs_is_measured(probed):
    record, W, depths, tokens = probed
    hidden = counted(tokens, depths[-1])
    norms = np.linalg.norm(hidden, axis=1)
    assert record.arrays["mean_hidden_norm"] == pytest.approx(norms.mean(), rel=1e-6)
    # σ(W_centred C^{1/2})² are the eigenvalues of W_centred C W_centredᵀ, and C = HᵀH/n.
    logits = hidden @ (W - W.mean(axis=0)).T / len(hidden) ** 0.5
    sigma = np.linalg.svd(logits, compute_uv=False)[:D]
    found = record.arrays["whitened_singular_values"]
    np.testing.assert_allclose(found, sigma, rtol=1e-4, atol=1e-5 * sigma[0])


def cosines_of(hidden):
    """(sum of the cosines of all pairs, number of pairs)."""
    units = hidden / np.linalg.norm(hidden, axis=1, keepdims=True)
    cosines = units @ units.T
    return cosines.sum() - np.trace(cosines), len(units) * (len(units) - 1)


def test_anisotropy_of_every_depth_is_the_mean_cosine(probed):
    record, _, depths, tokens = probed
    assert len(depths) == 3
    for depth, hidden in enumerate(depths):
        total, number = cosines_of(counted(tokens, hidden))
        found = record.scalars[f"anisotropy/{depth}"]
        assert found == pytest.approx(total / number, rel=1e-5, abs=1e-7)
        # Centred, it is of pairs within a micro-batch; of ten windows those are every third.
        total = number = 0
        for first in range(3):
            rows = slice(first, None, 3)
            states = hidden[rows][tokens["weights"][rows] > 0]
            sums = cosines_of(states - states.mean(axis=0))
            total, number = total + sums[0], number + sums[1]
        found = record.scalars[f"anisotropy_centred/{depth}"]
        assert found == pytest.approx(total / number, rel=1e-4, abs=1e-6)


def test_geometry_of_the_last_hidden_states(probed):
    record, _, depths, tokens = probed
    hidden = counted(tokens, depths[-1])
    total, number = cosines_of(hidden - 0.5)  # the bias that the fixture gave the final norm
    found = record.scalars["anisotropy_without_bias"]
    assert found == pytest.approx(total / number, rel=1e-4, abs=1e-6)
    eigenvalues = np.linalg.eigvalsh(hidden.T @ hidden / len(hidden))[::-1]
    np.testing.assert_allclose(record.arrays["hidden_eigenvalues"], eigenvalues, rtol=1e-4)
    share = eigenvalues[0] / eigenvalues.sum()
    assert record.scalars["hidden_top_share"] == pytest.approx(share, rel=1e-5)
    assert 0 < record.scalars["iso_score"] < 1


def test_the_anatomy_of_the_gap(probed):
    record, W, depths, tokens = probed
    hidden, targets = counted(tokens, depths[-1]), counted(tokens, tokens["targets"])
    z = hidden @ W.T
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    left, sigma, right = np.linalg.svd(W, full_matrices=False)
    rare = frequency_classes(np.arange(VOCAB), COUNTS)[targets] == 0
    for i, r in enumerate(RANKS):
        z_r = hidden @ ((left[:, :r] * sigma[:r]) @ right[:r]).T
        change = z_r - z
        mean = (p * change).sum(axis=1)
        first = mean - change[np.arange(len(targets)), targets]
        second = (p * (change - mean[:, None]) ** 2).sum(axis=1) / 2
        predicted = (first + second).mean()
        found = record.scalars[f"gap/predicted/{r}"]
        assert found == pytest.approx(predicted, rel=1e-4, abs=5e-6)
        agreement = (z_r.argmax(axis=1) == z.argmax(axis=1)).mean()
        assert record.arrays["agreement_plain"][i] == pytest.approx(agreement)
        gaps = cross_entropies(z_r, targets) - cross_entropies(z, targets)
        of_rare = gaps[rare].sum() / len(gaps)
        found = record.arrays["gap_plain_rare"][i]
        assert found == pytest.approx(of_rare, rel=1e-4, abs=5e-6)


def test_the_share_of_the_gradient_that_survives(probed):
    record, W, depths, tokens = probed
    rows = slice(0, None, 3)  # the first micro-batch
    counts = tokens["weights"][rows] > 0
    hidden, targets = depths[-1][rows][counts], tokens["targets"][rows][counts]
    z = hidden @ W.T
    p = np.exp(z - z.max(axis=1, keepdims=True))
    g = p / p.sum(axis=1, keepdims=True) - np.eye(VOCAB)[targets]
    columns = np.linalg.svd(W, full_matrices=False)[0][:, : np.linalg.matrix_rank(W)]
    survival = np.sqrt(((g @ columns) ** 2).sum() / (g**2).sum())
    assert record.scalars["gradient_survival"] == pytest.approx(survival, rel=1e-4)
