"""A whole probe against float64 numpy written out plainly, from the same hidden states."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from flax import nnx

from bottleneck.config import (
    ComputeConfig,
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    ProbeConfig,
    TrainConfig,
)
from bottleneck.model import transformer
from bottleneck.parallel.mesh import make_mesh
from bottleneck.probes.prober import Prober

D, VOCAB, RANKS = 32, 300, (1, 4, 16, 32)
CONFIG = Config(
    data=DataConfig(tokenizer_vocab_size=VOCAB),
    # The vocabulary is padded to 384 rows, and no chunk of tokens divides the windows.
    model=ModelConfig(vocab_size=VOCAB, d_model=D, n_heads=4, n_layers=2),
    compute=ComputeConfig(loss_chunk=35, mesh=MeshConfig(1, 1, 1)),
    train=TrainConfig(batch_size=4, sequence_length=16),
    probe=ProbeConfig(tokens=160, ranks=RANKS),
)
COUNTS = np.random.default_rng(1).permutation(VOCAB)
BIAS = np.linspace(0.2, 0.9, D)  # of the final norm
MICRO_BATCHES = [slice(first, None, 3) for first in range(3)]  # of ten windows, four at a time
# Of float32 sums; of the logits' own rounding, where a gap is the difference of two losses.
RTOL, ATOL = 1e-4, 5e-6


def validation_windows():
    """Ten windows, which micro-batches of four do not divide; of two not all tokens count."""
    source = np.random.default_rng(0)
    windows = source.integers(0, VOCAB, (10, 17), dtype=np.int32)
    weights = np.ones((10, 16), np.float32)
    weights[-1, 5:] = weights[3, :6] = 0
    documents = np.sort(source.integers(0, 7, (10, 16)).reshape(-1)).reshape(10, 16)
    documents[weights == 0] = 0
    return {
        "inputs": windows[:, :-1],
        "targets": windows[:, 1:],
        "weights": weights,
        "documents": documents.astype(np.int32),
    }


@dataclasses.dataclass(frozen=True)
class Probed:
    """A record and what it was made from, in float64; `hidden` and on: tokens that count, [n]."""

    record: object
    W: np.ndarray  # [VOCAB, D]
    rank: int  # of W
    depths: np.ndarray  # [3, 10, 16, D]
    tokens: dict

    def counted(self, array, rows=slice(None)):
        """The entries of an array [10, 16, ...] whose token counts."""
        return array[rows][self.tokens["weights"][rows] > 0]

    @property
    def hidden(self):
        return self.counted(self.depths[-1])

    @property
    def targets(self):
        return self.counted(self.tokens["targets"])


@pytest.fixture(scope="module", params=[None, 6], ids=["full", "rank 6"])
def probed(request):
    model = dataclasses.replace(CONFIG.model, head_rank=request.param)
    config = dataclasses.replace(CONFIG, model=model)
    params = jax.jit(lambda: transformer.init_params(config.model, jax.random.key(1)))()
    # A mean row and a strong direction, as trained heads have; centring must matter.
    rows = params["head"]["rows"] + 0.1
    if request.param is None:  # one singular value that float32 cannot resolve
        rows = rows.at[:, 1].set(rows[:, 0])
    params["head"]["rows"] = rows
    # Under a plain layer norm every hidden state would have the same length.
    params["final_norm"]["scale"] = np.linspace(0.3, 2, D, dtype=np.float32)
    params["final_norm"]["bias"] = np.float32(BIAS)
    mesh = make_mesh(config.compute.mesh, jax.devices()[:1])
    tokens = validation_windows()
    with jax.set_mesh(mesh):
        record = Prober(config, mesh, tokens, COUNTS).measure(params)
    model = nnx.merge(transformer.graph(config.model), params)
    _, depths = jax.jit(lambda inputs: model(inputs, observe=lambda h: h))(tokens["inputs"])
    factors = model.head.factors()
    W = np.asarray(factors.rows, np.float64)
    if factors.basis is not None:
        W = W @ np.asarray(factors.basis, np.float64)
    return Probed(record, W[:VOCAB], request.param or D - 1, np.asarray(depths, np.float64), tokens)


def log_softmax(logits):
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def cross_entropies(logits, targets):
    return -log_softmax(logits)[np.arange(len(targets)), targets]


def best_of_rank(matrix, r):
    left, sigma, right = np.linalg.svd(matrix, full_matrices=False)
    return (left[:, :r] * sigma[:r]) @ right[:r]


def tail_exponent(values):
    """The slope over the middle of a spectrum, each value of weight 1/i."""
    values = values[values > 0]
    middle = [i for i in range(1, len(values) + 1) if len(values) < 8 * i <= 6 * len(values)]
    x, y = np.log(middle), np.log([values[i - 1] for i in middle])
    weights = 1 / np.array(middle)
    x, y = (a - (weights * a).sum() / weights.sum() for a in (x, y))
    return -(weights * x * y).sum() / (weights * x * x).sum()


def expected_of_head(probed):
    W, record, rank = probed.W, probed.record, probed.rank
    spectra = {}
    for name, matrix in (("", W), ("_centred", W - W.mean(axis=0))):
        # From the rank on there are zeros, or a bound where float32 cannot tell, which counts.
        tail = getattr(record, f"singular_values{name}")[rank:]
        np.testing.assert_allclose(tail, 0, atol=1e-3)
        exact = np.linalg.svd(matrix, compute_uv=False)[:rank]
        spectra[f"singular_values{name}"] = np.append(exact, tail)
    values, centred = spectra.values()

    def entropy(masses):
        p = masses[masses > 0] / masses.sum()
        return np.log(D) + (p * np.log(p)).sum()

    squares, linear = entropy(values**2), entropy(values)
    scores = probed.hidden @ (W - W.mean(axis=0)).T / len(probed.hidden) ** 0.5
    scalars = {
        "singular_entropy": squares,
        "singular_entropy_linear": linear,
        "singular_entropy_centred": entropy(centred**2),
        "effective_rank": D / np.exp(linear),
        "stable_rank": np.sum(W**2) / np.linalg.norm(W, 2) ** 2,
        "participation_ratio": np.sum(W**2) ** 2 / np.sum((W.T @ W) ** 2),
        "tail_exponent": tail_exponent(values),
    }
    errors = [np.linalg.norm(W - best_of_rank(W, r)) / np.linalg.norm(W) for r in RANKS]
    return scalars | {f"w_error/{r}": e for r, e in zip(RANKS, errors, strict=True)}, {
        **spectra,
        **scalars,
        "w_error": errors,
        "first_bounded_index": D - 1 if rank == D - 1 else D,
        # σ(W_centred C^{1/2}), for C = HᵀH/n.
        "whitened_singular_values": np.linalg.svd(scores, compute_uv=False)[:D],
    }


def cosines_of(hidden):
    """(sum of the cosines of all pairs, number of pairs)."""
    units = hidden / np.linalg.norm(hidden, axis=1, keepdims=True)
    cosines = units @ units.T
    return np.array([cosines.sum() - np.trace(cosines), len(units) * (len(units) - 1)])


def expected_of_hidden_states(probed):
    hidden = probed.hidden
    anisotropy, centred = [], []
    for states in probed.depths:
        total, number = cosines_of(probed.counted(states))
        anisotropy.append(total / number)
        # Centred, it is of pairs within a micro-batch.
        batches = [probed.counted(states, rows) for rows in MICRO_BATCHES]
        total, number = sum(cosines_of(batch - batch.mean(axis=0)) for batch in batches)
        centred.append(total / number)
    total, number = cosines_of(hidden - BIAS)
    covariance = np.cov(hidden.T, bias=True)
    # Rudman et al. 2022, section 4, with its intermediate quantities eliminated.
    evenness = np.trace(covariance) ** 2 / np.sum(covariance**2)
    moments = np.linalg.svd(hidden, compute_uv=False) ** 2 / len(hidden)
    by_layer = {
        **{f"anisotropy/{depth}": value for depth, value in enumerate(anisotropy)},
        **{f"anisotropy_centred/{depth}": value for depth, value in enumerate(centred)},
    }
    scalars = {
        "anisotropy_without_bias": total / number,
        "iso_score": (evenness - 1) / (D - 1),
        "hidden_top_share": moments[0] / moments.sum(),
    }
    return scalars | by_layer, scalars | {
        "anisotropy": anisotropy,
        "anisotropy_centred": centred,
        "mean_hidden_norm": np.sqrt((hidden**2).sum(axis=1)).mean(),
    }


def clustered_error(values, documents):
    residuals = values - values.mean(axis=0)
    sums = np.array([residuals[documents == d].sum(axis=0) for d in np.unique(documents)])
    return np.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum(axis=0)) / len(values)


def expected_of_sweep(probed, kind):
    """Of a head whose logits of each rank are the best copies of W, or of the logits themselves."""
    hidden, W, targets = probed.hidden, probed.W, probed.targets
    documents, n = probed.counted(probed.tokens["documents"]), len(hidden)
    z = hidden @ W.T
    log_p, full = log_softmax(z), cross_entropies(z, targets)
    p = np.exp(log_p)
    by_token = {name: [] for name in ("loss", "first", "second", "kl", "agreement")}
    for r in RANKS:
        z_r = hidden @ best_of_rank(W, r).T if kind == "plain" else best_of_rank(z, r)
        change = z_r - z
        mean = (p * change).sum(axis=1)
        by_token["loss"].append(cross_entropies(z_r, targets))
        by_token["first"].append(mean - change[np.arange(n), targets])
        by_token["second"].append((p * change**2).sum(axis=1) / 2 - mean**2 / 2)
        by_token["kl"].append((p * (log_p - log_softmax(z_r))).sum(axis=1))
        by_token["agreement"].append(z_r.argmax(axis=1) == z.argmax(axis=1))
    by_token = {name: np.array(values).T for name, values in by_token.items()}
    means = {name: values.mean(axis=0) for name, values in by_token.items()}
    gaps = by_token["loss"] - full[:, None]
    rarer = np.array([COUNTS[count > COUNTS].sum() for count in COUNTS])  # text of rarer tokens
    thirds = (3 * rarer // COUNTS.sum())[targets]
    gap = gaps.mean(axis=0)
    scalars = {f"gap/{kind}/{r}": value for r, value in zip(RANKS, gap, strict=True)}
    arrays = {
        f"{kind}/gap": gap,
        f"{kind}/gap_se": clustered_error(gaps, documents),
        f"{kind}/first_order": means["first"],
        f"{kind}/second_order": means["second"],
        f"{kind}/kl": means["kl"],
        f"{kind}/agreement": means["agreement"],
        f"{kind}/rare": gaps[thirds == 0].sum(axis=0) / n,
        f"{kind}/middle": gaps[thirds == 1].sum(axis=0) / n,
        f"{kind}/frequent": gaps[thirds == 2].sum(axis=0) / n,
    }
    if kind == "plain":
        predicted = means["first"] + means["second"]
        scalars |= {f"gap/predicted/{r}": value for r, value in zip(RANKS, predicted, strict=True)}
        numbers = np.unique(documents)
        arrays |= {
            "ranks": RANKS,
            "document_losses": [full[documents == d].sum() for d in numbers],
            "document_tokens": [(documents == d).sum() for d in numbers],
        }
    return scalars, arrays


def expected_survival(probed):
    rows = MICRO_BATCHES[0]
    hidden, targets = (
        probed.counted(a, rows) for a in (probed.depths[-1], probed.tokens["targets"])
    )
    g = np.exp(log_softmax(hidden @ probed.W.T)) - np.eye(VOCAB)[targets]
    columns = np.linalg.svd(probed.W, full_matrices=False)[0][:, : probed.rank]
    return np.linalg.norm(g @ columns) / np.linalg.norm(g)


def test_every_entry_of_the_record_by_its_name(probed):
    losses = cross_entropies(probed.hidden @ probed.W.T, probed.targets)
    error = clustered_error(losses, probed.counted(probed.tokens["documents"]))
    survival = expected_survival(probed)
    parts = [
        expected_of_head(probed),
        expected_of_hidden_states(probed),
        expected_of_sweep(probed, "plain"),
        expected_of_sweep(probed, "whitened"),
        ({"gradient_survival": survival}, {"gradient_survival": survival}),
        ({}, {"loss": losses.mean(), "loss_se": error}),
    ]
    scalars = {name: value for some, _ in parts for name, value in some.items()}
    arrays = {name: value for _, some in parts for name, value in some.items()}
    for found, expected in (
        (probed.record.scalars(), scalars),
        (probed.record.arrays(), arrays),
    ):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            # The least of them are what float32 leaves of zero.
            atol = 1e-4 if name == "whitened_singular_values" else ATOL
            np.testing.assert_allclose(found[name], value, rtol=RTOL, atol=atol, err_msg=name)


def test_no_entry_can_be_taken_for_another(probed):
    """Else the test before this one could not tell whether two have changed places."""
    record = probed.record
    scalars = {n: v for n, v in record.scalars().items() if abs(v) > ATOL}
    for values in (scalars, record.arrays()):
        for (name, one), (other, two) in itertools.combinations(values.items(), 2):
            is_same = np.shape(one) == np.shape(two) and np.allclose(one, two, RTOL, 2 * ATOL)
            assert not is_same, f"{name} and {other}"


def test_the_gap_at_full_rank_is_zero(probed):
    for kind in ("plain", "whitened"):
        assert abs(getattr(probed.record, kind).gap[-1]) < 1e-6
