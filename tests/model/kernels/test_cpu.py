"""Fences and products for a CPU: the same values and gradients, in programs that do less."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from bottleneck.config import Config, DataConfig, MeshConfig, ModelConfig, TrainConfig
from bottleneck.model import transformer
from bottleneck.model.kernels import device, linear, remat
from bottleneck.model.kernels.cpu import computed_once
from bottleneck.parallel.mesh import make_mesh
from bottleneck.training.step import make_gradient


def test_a_fence_leaves_values_and_gradients_alone():
    x = jnp.arange(6.0)
    np.testing.assert_array_equal(computed_once(x), x)
    gradient = jax.grad(lambda x: jnp.sum(jnp.sin(computed_once(x))))(x)
    np.testing.assert_array_equal(gradient, jnp.cos(x))


B, L, D, F = 4, 12, 16, 80


def program(n_layers, n_devices=1):
    """The text of the compiled gradient of a model."""
    config = Config(
        data=DataConfig(tokenizer_vocab_size=300),
        model=ModelConfig(
            vocab_size=300, d_model=D, d_ff=F, n_heads=2, n_layers=n_layers, max_length=L
        ),
        train=TrainConfig(batch_size=B, sequence_length=L),
    )
    params = jax.eval_shape(lambda: transformer.init_params(config.model, jax.random.key(0)))
    batch = {
        name: jax.ShapeDtypeStruct((B, L), kind)
        for name, kind in (("inputs", "int32"), ("targets", "int32"), ("weights", "float32"))
    }
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:n_devices])):
        return jax.jit(make_gradient(config)).lower(params, batch).compile().as_text()


def most_operands(text):
    """Of a fusion of the program."""
    return max(line.count("%") - 2 for line in text.splitlines() if "kind=kLoop" in line)


def test_no_fusion_reaches_over_many_layers(monkeypatch):
    assert most_operands(program(8)) == most_operands(program(4))
    monkeypatch.setattr(remat, "computed_once", lambda x: x)
    assert most_operands(program(8)) > 1.5 * most_operands(program(4))


def test_no_activation_of_the_width_of_the_mlp_is_turned(monkeypatch):
    turned = re.compile(rf"f32\[{F},{B * L}\]")
    assert not turned.search(program(1))
    monkeypatch.setattr(linear, "product", jnp.matmul)
    assert turned.search(program(1))


def test_on_a_mesh_there_is_none_of_it():
    assert "inlineable" in program(2)
    assert "inlineable" not in program(2, n_devices=4)
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:4])):
        assert not device.is_one_cpu()
