"""Products of linear layers: the same values and gradients, by one product or by several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bottleneck.model.kernels import linear
from bottleneck.model.kernels.linear import Linear, product, projections


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (6, 6)], ids=["wider", "narrower", "square"])
def test_a_product_and_its_gradients_are_those_of_numpy(shape):
    source = np.random.default_rng(0)
    x, kernel = source.standard_normal((3, 5, shape[0])), source.standard_normal(shape)
    gradient = source.standard_normal((3, 5, shape[1]))
    value, back = jax.vjp(product, *(jnp.float32(array) for array in (x, kernel)))
    by_x, by_kernel = back(jnp.float32(gradient))
    np.testing.assert_allclose(value, x @ kernel, atol=1e-5)
    np.testing.assert_allclose(by_x, gradient @ kernel.T, atol=1e-5)
    np.testing.assert_allclose(by_kernel, np.einsum("abi,abo->io", x, gradient), atol=1e-5)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize(("is_one_cpu", "n_products"), [(True, 1), (False, 3)])
def test_projections_equal_the_linear_layers(is_one_cpu, n_products, use_bias, monkeypatch):
    monkeypatch.setattr(linear, "is_one_cpu", lambda: is_one_cpu)
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    rngs = nnx.Rngs(0)
    bias_init = nnx.initializers.normal(1.0)
    layers = [
        Linear(8, n_outputs, use_bias=use_bias, bias_init=bias_init, rngs=rngs)
        for n_outputs in (6, 2, 4)
    ]
    found, expected = projections(layers, x), linear.reference(layers, x)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    program = str(jax.make_jaxpr(lambda x: projections(layers, x))(x))
    assert program.count("dot_general[") == n_products


@pytest.mark.parametrize("is_one_cpu", [True, False])
def test_outputs_have_the_name_of_their_layer(is_one_cpu, monkeypatch):
    monkeypatch.setattr(linear, "is_one_cpu", lambda: is_one_cpu)
    layers = [Linear(8, 8, kept_as=name, rngs=nnx.Rngs(0)) for name in ("one", None, "other")]
    program = str(jax.make_jaxpr(lambda x: projections(layers, x))(jnp.ones((2, 8))))
    assert program.count("name[name=") == 2
    assert "name[name=one]" in program and "name[name=other]" in program
