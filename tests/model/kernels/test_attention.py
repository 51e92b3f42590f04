"""Attention against float64 numpy written out position by position."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bottleneck.model.kernels import attention
from bottleneck.model.kernels.attention import causal_attention, splash_attention

B, L, K = 2, 9, 8


def random(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("implementation", ["xla", "blocks"])
@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(4, 4), (4, 2), (4, 1)])
def test_attention_is_a_softmax_over_the_tokens_so_far(n_heads, n_kv_heads, implementation):
    query = random(0, B, L, n_heads, K)
    key, value = random(1, B, L, n_kv_heads, K), random(2, B, L, n_kv_heads, K)
    mixed = np.asarray(causal_attention(query, key, value, implementation))
    group = n_heads // n_kv_heads
    q, k, v = (np.asarray(array, np.float64) for array in (query, key, value))
    for b, i, h in np.ndindex(B, L, n_heads):
        scores = k[b, : i + 1, h // group] @ q[b, i, h] / np.sqrt(K)
        weights = np.exp(scores - scores.max())
        expected = weights @ v[b, : i + 1, h // group] / weights.sum()
        np.testing.assert_allclose(mixed[b, i, h], expected, atol=2e-6)


# One block; blocks of 64 that do not divide the length; eight blocks, which do not either.
@pytest.mark.parametrize("length", [9, 150, 601])
@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(2, 2), (6, 2)])
def test_blocks_of_queries_have_the_values_and_gradients_of_the_whole(length, n_heads, n_kv_heads):
    query, target = random(0, 1, length, n_heads, K), random(3, 1, length, n_heads, K)
    key, value = random(1, 1, length, n_kv_heads, K), random(2, 1, length, n_kv_heads, K)

    def product(implementation):
        def loss(*arrays):
            return jnp.vdot(causal_attention(*arrays, implementation), target)

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(3 * query, key, value)

    (mixed, gradients), (expected, expected_gradients) = product("blocks"), product("xla")
    np.testing.assert_allclose(mixed, expected, rtol=1e-5, atol=1e-4)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=3e-6 * np.abs(theirs).max())


def test_blocks_compute_little_more_than_the_half_of_the_square_that_is_causal():
    array = jax.ShapeDtypeStruct((1, 1024, 2, 32), jnp.float32)

    def flops(implementation):
        def loss(*arrays):
            return jnp.sum(causal_attention(*arrays, implementation))

        gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
        cost = gradient.lower(array, array, array).cost_analysis()
        return cost["flops"]

    # Eight blocks: 9/16 of the square, and seven products with it, where six do without weights
    # that are computed again.
    assert flops("blocks") < 0.8 * flops("xla")


def test_a_gpu_in_half_precision_takes_cudnn_a_cpu_its_blocks(monkeypatch):
    taken = []

    def record(*arrays, implementation, is_causal):
        assert is_causal
        taken.append(implementation)
        return arrays[0]

    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    monkeypatch.setattr(attention, "block_attention", lambda *_: taken.append("blocks"))
    for kind, dtype in (("gpu", jnp.bfloat16), ("cuda", jnp.float32), ("cpu", jnp.float32)):
        monkeypatch.setattr(attention, "platform", lambda kind=kind: kind)
        array = random(0, B, L, 2, K).astype(dtype)
        causal_attention(array, array, array, "auto")
    assert taken == ["cudnn", "xla", "blocks"]


@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(2, 2), (4, 2)])
def test_the_tpu_kernel_equals_the_reference_and_so_do_its_gradients(n_heads, n_kv_heads):
    query = random(0, 1, 256, n_heads, 64)
    key, value = random(1, 1, 256, n_kv_heads, 64), random(2, 1, 256, n_kv_heads, 64)
    target = random(3, 1, 256, n_heads, 64)

    def product(attend):
        def loss(*arrays):
            return jnp.vdot(attend(*arrays), target)

        return jax.value_and_grad(loss, argnums=(0, 1, 2))(query, key, value)

    mixed = splash_attention(query, key, value, interpret=True)
    expected = causal_attention(query, key, value, "xla")
    np.testing.assert_allclose(mixed, expected, atol=2e-5)
    _, gradients = product(lambda *arrays: splash_attention(*arrays, interpret=True))
    _, expected_gradients = product(lambda *arrays: causal_attention(*arrays, "xla"))
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=5e-5)
