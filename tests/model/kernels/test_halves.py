"""Products by panels are the whole products, on widths that panels divide and do not divide."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bottleneck.model.kernels.halves import gram_product, triangular_product

matmul = functools.partial(jnp.matmul, precision="highest")


@pytest.mark.parametrize("width", [1, 100, 256, 515])
def test_by_panels_is_the_whole_product(width):
    rng = np.random.default_rng(width)
    left = rng.standard_normal((37, width))
    right = np.triu(rng.standard_normal((width, width)))
    product = jax.jit(functools.partial(triangular_product, matmul))
    found = product(jnp.float32(left), jnp.float32(right))
    # float32 sums of at most 515 products of size 1.
    np.testing.assert_allclose(found, left @ right, atol=1e-4)
    found = jax.jit(functools.partial(gram_product, matmul))(jnp.float32(left))
    np.testing.assert_allclose(np.tril(found), np.tril(left.T @ left), atol=1e-4)


def test_a_cpu_leaves_the_known_half_out():
    array = jax.ShapeDtypeStruct((37, 512), jnp.float32)
    lowered = jax.jit(functools.partial(gram_product, matmul)).lower(array)
    flops = lowered.compile().cost_analysis()["flops"]
    assert flops < 0.7 * 2 * 37 * 512**2  # four panels: 10 of 16 blocks
