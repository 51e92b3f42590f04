"""The train step: the gradient it takes, however the batch is divided, and what it does with it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bottleneck.config import (
    ComputeConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from bottleneck.model import transformer
from bottleneck.parallel import mesh as mesh_lib
from bottleneck.parallel.mesh import make_mesh
from bottleneck.probes.programs import ProbePrograms
from bottleneck.training.step import make_gradient, make_train_program

CONFIG = Config(
    data=DataConfig(tokenizer_vocab_size=300),
    model=ModelConfig(vocab_size=300, d_model=32, n_heads=4, n_layers=2),
    train=TrainConfig(steps=20, batch_size=8, sequence_length=16),
    compute=ComputeConfig(loss_chunk=20),
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=2),
)


def random_batch(seed=0, batch_size=8, length=16):
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "inputs": jax.random.randint(keys[0], (batch_size, length), 0, 300),
        "targets": jax.random.randint(keys[1], (batch_size, length), 0, 300),
        "weights": jnp.ones((batch_size, length)),
    }


def unevenly_padded(batch):
    """Row i keeps its first 2·i + 1 targets, so that no two micro-batches weigh the same."""
    lengths = 2 * jnp.arange(batch["weights"].shape[0])[:, None] + 1
    keep = jnp.arange(batch["weights"].shape[1]) < lengths
    return batch | {"weights": keep.astype(jnp.float32)}


def with_micro_batches(config, n):
    return dataclasses.replace(
        config, compute=dataclasses.replace(config.compute, accumulation_steps=n)
    )


def init(config):
    return jax.jit(lambda: transformer.init_params(config.model, jax.random.key(0)))()


@pytest.fixture(scope="module")
def params():
    return init(CONFIG)


@pytest.fixture(scope="module")
def gradient():
    return jax.jit(make_gradient(CONFIG))


@pytest.mark.parametrize("rank", [None, 5])
def test_accumulation_gives_the_gradient_of_the_single_big_batch(rank):
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, head_rank=rank))
    params = init(config)
    batch = unevenly_padded(random_batch())
    whole_loss, whole = jax.jit(make_gradient(config))(params, batch)
    parts_loss, parts = jax.jit(make_gradient(with_micro_batches(config, 4)))(params, batch)
    np.testing.assert_allclose(parts_loss, whole_loss, rtol=1e-6)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(whole))
    for a, b in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 * largest)


def test_the_loss_is_the_mean_over_the_tokens_that_count(params, gradient):
    batch = unevenly_padded(random_batch())
    loss, _ = gradient(params, batch)
    model = nnx.merge(transformer.graph(CONFIG.model), params)
    logits = model.head.factors().logits(jax.jit(model)(batch["inputs"])[0])[..., :300]
    per_token = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
    kept = np.asarray(batch["weights"], bool)
    np.testing.assert_allclose(loss, np.asarray(per_token)[kept].mean(), rtol=1e-6)


def test_the_gradient_is_that_of_finite_differences(params, gradient):
    batch = unevenly_padded(random_batch())
    _, grads = gradient(params, batch)
    direction = jax.tree.map(
        lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape), params
    )
    slope = sum(
        float(jnp.vdot(g, d))
        for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True)
    )

    def at(epsilon):
        moved = jax.tree.map(lambda p, d: p + epsilon * d, params, direction)
        return float(gradient(moved, batch)[0])

    # Central difference: the error falls as ε², and float32 losses of size 6 carry some 1e-6.
    np.testing.assert_allclose((at(1e-3) - at(-1e-3)) / 2e-3, slope, rtol=5e-3)


def test_steps_on_one_batch_drive_its_loss_down():
    mesh = make_mesh(CONFIG.compute.mesh, jax.devices()[:1])
    program = make_train_program(CONFIG, mesh)
    with jax.set_mesh(mesh):
        step = program.compile(8, 16)
        params, opt_state = program.init()
        losses = []
        for _ in range(20):
            params, opt_state, metrics = step(params, opt_state, random_batch())
            losses.append(float(metrics["loss"]))
    assert losses[0] == pytest.approx(np.log(300), abs=0.3)
    assert losses[-1] < losses[0] - 1.0


def test_the_seed_alone_decides_the_parameters():
    mesh = make_mesh(CONFIG.compute.mesh, jax.devices()[:1])
    states = [
        make_train_program(dataclasses.replace(CONFIG, seed=seed), mesh).init()[0]
        for seed in (0, 0, 1)
    ]
    same, other = (
        all(map(np.array_equal, jax.tree.leaves(states[0]), jax.tree.leaves(state)))
        for state in states[1:]
    )
    assert same
    assert not other


def products(program):
    """(types of the two sides, where it stands) of every matrix product in a traced program."""
    for step in program.eqns:
        if step.primitive.name == "dot_general":
            yield {side.aval.dtype for side in step.invars}, str(step.source_info.name_stack)
        for inner in jax.tree.leaves(
            list(step.params.values()), is_leaf=lambda value: hasattr(value, "eqns")
        ):
            if hasattr(inner, "jaxpr"):
                inner = inner.jaxpr
            if hasattr(inner, "eqns"):
                yield from products(inner)


@pytest.mark.parametrize("rank", [None, 5])
def test_under_bfloat16_no_product_has_a_float32_side_forward_or_backward(rank):
    config = dataclasses.replace(
        CONFIG,
        model=dataclasses.replace(CONFIG.model, head_rank=rank),
        compute=dataclasses.replace(CONFIG.compute, dtype="bfloat16", attention="blocks"),
    )
    params = jax.eval_shape(lambda: transformer.init_params(config.model, jax.random.key(0)))
    found = list(products(jax.make_jaxpr(make_gradient(config))(params, random_batch()).jaxpr))
    # Of a layer: four maps, as query, key and value are one, and two products of attention, each
    # three times, with the scores again; of the head three, six with a basis.
    assert len(found) == 3 * 6 + 1 + (3 if rank is None else 6)
    assert [where for types, where in found if types != {jnp.dtype("bfloat16")}] == []


def test_the_train_step_and_the_probes_are_compiled_with_the_flags_of_the_mesh(monkeypatch):
    monkeypatch.setattr(mesh_lib, "compiler_options", lambda mesh: {"no_such_flag": "1"})
    mesh = make_mesh(CONFIG.compute.mesh, jax.devices()[:1])
    program = make_train_program(CONFIG, mesh)
    params = program.abstract_state[0]
    with jax.set_mesh(mesh):
        lowered = ProbePrograms(CONFIG, mesh, 8).lower(params)
        with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_flag"):
            program.compile(8, 16)
        for probe in lowered.values():
            with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_flag"):
                probe.compile()
