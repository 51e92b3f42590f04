"""The peer of the benchmark is the same model: equal parameters, equal loss and gradients."""

import dataclasses
import runpy
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bottleneck.config import Config, DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from bottleneck.model import transformer
from bottleneck.parallel.mesh import make_mesh
from bottleneck.training.step import make_gradient, make_train_program

pytestmark = [
    pytest.mark.hf,
    pytest.mark.skipif(find_spec("torch") is None, reason="needs torch: make test-hf"),
]

CONFIG = Config(
    data=DataConfig(tokenizer_vocab_size=300),
    # No padded rows: the peer gives them a probability, as GPT-NeoX does.
    model=ModelConfig(
        vocab_size=300, vocab_multiple=1, d_model=48, n_heads=3, n_layers=2, rotary_fraction=0.25
    ),
    train=TrainConfig(steps=5, batch_size=4, sequence_length=70),
    # The same rate at every step, and a gradient that is clipped.
    optimizer=OptimizerConfig(learning_rate=1e-3, final_fraction=1.0, clip_norm=0.1),
)


@pytest.fixture(scope="module")
def peers():
    path = Path(__file__).parents[1] / "benchmarks/peers.py"
    return runpy.run_path(str(path))


def batch(config):
    shape = (config.train.batch_size, config.train.sequence_length + 1)
    windows = np.random.default_rng(0).integers(0, 300, shape)
    return windows[:, :-1].copy(), windows[:, 1:].copy()


def both(peers, rank):
    """(config, our parameters, none of them as at the start of a training, the peer with them)."""
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, head_rank=rank))
    params = transformer.init_params(config.model, jax.random.key(0))
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: np.asarray(leaf) + 0.02 * rng.standard_normal(leaf.shape, np.float32), params
    )
    model = peers["GPTNeoX"](config.model, config.train.sequence_length)
    peers["load_params"](model, params)
    return config, params, model


@pytest.mark.parametrize("rank", [None, 7])
def test_the_peer_has_our_loss_and_the_norm_of_our_gradient(rank, peers):
    import torch

    config, params, model = both(peers, rank)
    inputs, targets = batch(config)
    ours = {"inputs": inputs, "targets": targets, "weights": jnp.ones(inputs.shape)}
    loss, gradient = jax.jit(make_gradient(config))(params, ours)
    theirs = model(torch.from_numpy(inputs), torch.from_numpy(targets))
    theirs.backward()
    np.testing.assert_allclose(theirs.item(), loss, rtol=1e-5)

    def norm(tree):
        return np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree)))

    their_norm = np.sqrt(sum(float((p.grad**2).sum()) for p in model.parameters()))
    np.testing.assert_allclose(their_norm, norm(gradient), rtol=1e-4)
    np.testing.assert_allclose(
        norm(model.embedding.weight.grad.numpy()), norm(gradient["embedding"]), rtol=1e-4
    )
    np.testing.assert_allclose(
        norm(model.head.weight.grad.numpy()), norm(gradient["head"]["rows"]), rtol=1e-4
    )


def test_steps_of_the_peer_have_our_losses(peers):
    import torch

    config, params, model = both(peers, None)
    inputs, targets = batch(config)
    step = peers["make_step"](config, model, compiled=False)
    theirs = [float(step(torch.from_numpy(inputs), torch.from_numpy(targets))) for _ in range(5)]
    mesh = make_mesh(config.compute.mesh, jax.devices()[:1])
    program = make_train_program(config, mesh)
    with jax.set_mesh(mesh):
        train = program.compile(*inputs.shape)
        _, opt_state = program.init()
        state = jax.tree.map(jnp.array, params), opt_state
        ours = []
        for _ in range(5):
            arrays = {
                "inputs": inputs.astype(np.int32),
                "targets": targets.astype(np.int32),
                "weights": np.ones(inputs.shape, np.float32),
            }
            *state, metrics = train(*state, jax.device_put(arrays, train.input_shardings[0][2]))
            ours.append(float(metrics["loss"]))
    assert ours[-1] < ours[0] - 0.05
    np.testing.assert_allclose(theirs, ours, rtol=1e-4)
