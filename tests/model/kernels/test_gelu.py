"""GELU against the normal distribution in float64, and against jax's own."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from bottleneck.model.kernels import gelu
from bottleneck.model.kernels.gelu import exact_gelu

X = np.linspace(-6, 6, 101)


def test_gelu_and_its_derivative_are_those_of_the_normal_distribution():
    value, slope = jax.vmap(jax.value_and_grad(exact_gelu))(jnp.asarray(X, jnp.float32))
    density = np.exp(-(X**2) / 2) / np.sqrt(2 * np.pi)
    # Φ is summed from ½ and ½·erf: off by an eighth of a millionth, times |x|.
    np.testing.assert_allclose(value, X * special.ndtr(X), atol=1e-6)
    np.testing.assert_allclose(slope, special.ndtr(X) + X * density, atol=1e-6)


def test_gelu_and_its_derivative_equal_the_reference():
    x = jnp.asarray(X, jnp.float32)
    ours, theirs = (jax.vmap(jax.value_and_grad(f))(x) for f in (exact_gelu, gelu.reference))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
