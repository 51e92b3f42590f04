"""Scores of tokens against the softmax of all logits in float64, however they are batched."""

import jax
import numpy as np
import pytest
from flax import nnx

from bottleneck.config import MeshConfig
from bottleneck.model import transformer
from bottleneck.parallel import mesh as mesh_lib
from bottleneck.pretrained.scoring import Scorer


@pytest.fixture
def mesh():
    return mesh_lib.make_mesh(MeshConfig(fsdp=2, tensor=2))


@pytest.fixture
def sequences():
    """Of at most 50 tokens, which is all that the model takes: two padded lengths."""
    rng = np.random.default_rng(1)
    return [rng.integers(0, 301, n).tolist() for n in (7, 50, 7, 50, 7)]


def log_probabilities(config, params, sequences):
    """float64 [L, vocab_size] for each sequence by itself, of what comes after each token."""
    run = jax.jit(lambda params, x: nnx.merge(transformer.graph(config), params)(x)[0])
    head = {name: np.asarray(value, np.float64) for name, value in params["head"].items()}
    for tokens in sequences:
        hidden = np.asarray(run(params, np.array([tokens]))[0], np.float64)
        logits = (hidden @ (head["rows"] @ head["basis"]).T)[:, : config.vocab_size]
        yield logits - np.log(np.sum(np.exp(logits), axis=1, keepdims=True))


def test_scores_are_those_of_the_whole_softmax(build, mesh, sequences):
    # A padded vocabulary, whose empty rows would take part if nobody told them not to.
    config, params = build("gpt_neox", head_rank=7, vocab_multiple=64, d_ff=98)
    scorer = Scorer(config, params, batch_size=2, mesh=mesh)
    tables = list(log_probabilities(config, params, sequences))
    nexts = [int(np.argmax(table[-1])) for table in tables]
    assert scorer.extend(sequences) == nexts

    longer = [[*tokens, best] for tokens, best in zip(sequences, nexts, strict=True)]
    requests = [(tokens, 1 + len(tokens) // 2) for tokens in longer[:-1]] + [(longer[-1], 1)]
    scores = scorer.score(requests)
    for (tokens, n), table, score in zip(requests, tables, scores, strict=True):
        of_each = [table[i - 1, tokens[i]] for i in range(len(tokens) - n, len(tokens))]
        # Float32 sums of at most 26 numbers near −5.
        assert score.log_probability == pytest.approx(sum(of_each), abs=1e-4)
    assert [score.is_greedy for score in scores] == [False] * 4 + [True]
    assert scorer._score._cache_size() == 2  # programs: one for each padded length
