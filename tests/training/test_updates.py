"""What a step leaves behind: parameters, moments and counts, against AdamW in float64."""

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
from bottleneck.parallel.mesh import make_mesh
from bottleneck.training.step import make_train_program

VOCAB, Z_LOSS, ROWS, LENGTH = 270, 0.05, 4, 8

# No field of the optimizer has its default. Its ε is far above the rounding of a gradient, which
# Adam would else divide by its own size.
ADAM = OptimizerConfig(
    learning_rate=0.02,
    warmup_steps=2,
    final_fraction=0.3,
    beta1=0.8,
    beta2=0.7,
    epsilon=1e-3,
    weight_decay=0.5,
    clip_norm=0.25,
)
CONFIG = Config(
    data=DataConfig(tokenizer_vocab_size=260),
    model=ModelConfig(vocab_size=VOCAB, d_model=16, n_heads=2, n_layers=1, head_rank=5),
    train=TrainConfig(
        steps=6,
        batch_size=ROWS,
        sequence_length=LENGTH,
        z_loss=Z_LOSS,
        bad_steps=9,
        skip_bad_batches=True,
    ),
    optimizer=ADAM,
    compute=ComputeConfig(accumulation_steps=2),
)


def batch_of(step):
    """Random tokens, of which each row keeps another number."""
    source = np.random.default_rng(step)
    windows = source.integers(0, VOCAB, (ROWS, LENGTH + 1), np.int32)
    keep = np.arange(LENGTH) < 2 * np.arange(1, ROWS + 1)[:, None]
    return {
        "inputs": windows[:, :-1],
        "targets": windows[:, 1:],
        "weights": keep.astype(np.float32),
    }


@pytest.fixture(scope="module")
def program():
    """(the program, its compiled step, what puts a batch on the device)."""
    mesh = make_mesh(CONFIG.compute.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        made = make_train_program(CONFIG, mesh)
        yield made, made.compile(ROWS, LENGTH)


def take(program, state, batch):
    """One step: (its new state, its metrics), on the host; the state that it consumes is kept."""
    step = program[1]
    shardings = step.input_shardings[0]
    *new, metrics = step(*jax.device_put((*state, batch), shardings))
    return jax.tree.map(np.array, tuple(new)), jax.tree.map(np.array, metrics)


def fresh(program):
    return jax.tree.map(np.array, program[0].init())


@jax.jit
def losses_and_gradient(params, batch):
    """((mean objective, mean cross-entropy), gradient), from all logits at once."""

    def objective(params):
        model = nnx.merge(transformer.graph(CONFIG.model), params)
        logits = model.head.factors().logits(model(batch["inputs"])[0])[..., :VOCAB]
        cross = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        squares = jax.nn.logsumexp(logits, axis=-1) ** 2
        weights = batch["weights"] / batch["weights"].sum()
        return jnp.sum(weights * (cross + Z_LOSS * squares)), jnp.sum(weights * cross)

    return jax.value_and_grad(objective, has_aux=True)(params)


def learning_rate(update):
    """Of update number 0, 1, …: linear to the peak, then a cosine, written out."""
    if update < 2:
        return 0.02 * (update + 1) / 3
    return 0.02 * (0.3 + 0.7 * (1 + np.cos(np.pi * (update - 2) / 3)) / 2)


def by_name(tree):
    return {
        "/".join(key.key for key in path): np.asarray(leaf, np.float64)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


class AdamW:
    """The update rule in float64, with the counts of the steps that it is told of."""

    def __init__(self, params):
        self.params = by_name(params)
        self.first = {name: 0.0 for name in self.params}
        self.second = {name: 0.0 for name in self.params}

    def update(self, step, gradient):
        """Takes the gradient of step 1, 2, …; steps that are left out count all the same."""
        norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        assert norm > 0.25, "nothing is clipped"
        for name, g in gradient.items():
            g = g * 0.25 / norm
            self.first[name] = 0.8 * self.first[name] + 0.2 * g
            self.second[name] = 0.7 * self.second[name] + 0.3 * g**2
            mean = self.first[name] / (1 - 0.8**step)
            scale = np.sqrt(self.second[name] / (1 - 0.7**step)) + 1e-3
            is_matrix = name.endswith(("kernel", "rows", "basis"))
            decay = 0.5 * self.params[name] if is_matrix else 0.0
            self.params[name] = self.params[name] - learning_rate(step - 1) * (mean / scale + decay)


@pytest.mark.parametrize("bad", [(), (1,), (3, 4)])
def test_parameters_are_those_of_adamw_in_float64_and_skipped_steps_count(program, bad):
    state = fresh(program)
    expected = AdamW(state[0])
    for step in range(1, 7):
        batch = batch_of(step)
        (_, cross), gradient = losses_and_gradient(state[0], batch)
        if step in bad:
            state, metrics = take(
                program, state, batch | {"weights": np.full((ROWS, LENGTH), np.nan, np.float32)}
            )
            assert np.isnan(metrics["loss"])
        else:
            state, metrics = take(program, state, batch)
            gradient = by_name(gradient)
            expected.update(step, gradient)
            norms = {name: np.sqrt((g**2).sum()) for name, g in gradient.items()}
            assert metrics["grad_norms"].keys() == norms.keys()
            for name, norm in norms.items():  # that of the keys' bias is rounding alone
                np.testing.assert_allclose(metrics["grad_norms"][name], norm, 1e-4, 1e-6, name)
            total = np.sqrt(sum(norm**2 for norm in norms.values()))
            np.testing.assert_allclose(metrics["grad_norm"], total, rtol=1e-5)
            np.testing.assert_allclose(metrics["loss"], cross, rtol=1e-5)
        # A gradient's rounding, some 1e-7, over ε, at a learning rate of 0.02: 2e-6 a step.
        for name, array in by_name(state[0]).items():
            np.testing.assert_allclose(array, expected.params[name], atol=1e-5, err_msg=name)


def test_a_gradient_that_is_not_finite_is_skipped_though_the_loss_is_finite(program):
    state, _ = take(program, fresh(program), batch_of(1))
    # Losses of some 1e25 are finite, and the squares of the gradient are not.
    state[0]["head"]["rows"] *= 1e25
    after, metrics = take(program, state, batch_of(2))
    assert np.isfinite(metrics["loss"]) and not np.isfinite(metrics["grad_norm"])
    counts = 0
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        is_count = old.dtype == np.int32
        np.testing.assert_array_equal(new, old + is_count)
        counts += is_count
    assert counts == 2  # Adam's and the schedule's
