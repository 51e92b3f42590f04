"""The update rule against Adam written out."""

import jax
import jax.numpy as jnp
import numpy as np

from bottleneck.config import ModelConfig, OptimizerConfig
from bottleneck.model import transformer
from bottleneck.training.optimizer import make_optimizer


def test_an_update_is_adam_with_decay_on_matrices_alone_after_clipping():
    config = OptimizerConfig(
        learning_rate=0.1, warmup_steps=0, final_fraction=1.0, clip_norm=0.5, weight_decay=0.2
    )
    axes = {"matrix": ("embed", "mlp"), "stacked_bias": (None, "mlp")}
    optimizer = make_optimizer(config, 10, axes)
    params = {"matrix": jnp.full((2, 3), 2.0), "stacked_bias": jnp.full((2, 3), 2.0)}
    state = optimizer.init(params)
    rng = np.random.default_rng(0)
    m = {name: 0.0 for name in params}
    v = {name: 0.0 for name in params}
    expected = {name: np.full((2, 3), 2.0) for name in params}
    for count in range(1, 4):
        grads = {name: rng.normal(size=(2, 3)) for name in params}
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        updates, state = optimizer.update(
            {name: jnp.float32(g) for name, g in grads.items()}, state, params
        )
        params = {name: params[name] + updates[name] for name in params}
        for name, g in grads.items():
            g = g * min(1.0, 0.5 / norm)
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.95 * v[name] + 0.05 * g**2
            direction = m[name] / (1 - 0.9**count) / (np.sqrt(v[name] / (1 - 0.95**count)) + 1e-8)
            decay = 0.2 * expected[name] if name == "matrix" else 0.0
            expected[name] = expected[name] - 0.1 * (direction + decay)
            np.testing.assert_allclose(params[name], expected[name], rtol=1e-5)


def test_without_clipping_a_large_gradient_stays_large():
    # ε far above the gradient makes the first update the gradient over ε.
    config = OptimizerConfig(learning_rate=0.1, clip_norm=None, epsilon=1e6, weight_decay=0.0)
    optimizer = make_optimizer(config, 10, {"w": ("embed", "mlp")})
    params = {"w": jnp.zeros((1, 2))}
    updates, _ = optimizer.update({"w": jnp.array([[30.0, -40.0]])}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], -0.1 * np.array([[30, -40]]) / 1e6, rtol=1e-4)


def test_no_bias_or_norm_of_the_model_decays_and_every_matrix_does():
    config = ModelConfig(vocab_size=300, d_model=32, n_heads=4, n_layers=3, head_rank=4)
    axes = transformer.logical_axes(config)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1.0, weight_decay=1.0), 10, axes)
    shapes = jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)

    @jax.jit
    def update_for_no_gradient(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optimizer.update(zeros, optimizer.init(params), params)[0]

    updates = update_for_no_gradient(params)
    decayed = {
        jax.tree_util.keystr(path): bool(jnp.any(leaf != 0))
        for path, leaf in jax.tree_util.tree_leaves_with_path(updates)
    }
    for path, is_decayed in decayed.items():
        assert is_decayed == any(name in path for name in ("kernel", "rows", "basis")), path
