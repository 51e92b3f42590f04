"""Attention and rotation against float64 numpy written out position by position."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bottleneck.model.attention import causal_attention, rotate, splash_attention

B, L, K = 2, 9, 8


def random(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(4, 4), (4, 2), (4, 1)])
def test_attention_is_a_softmax_over_the_tokens_so_far(n_heads, n_kv_heads):
    query = random(0, B, L, n_heads, K)
    key, value = random(1, B, L, n_kv_heads, K), random(2, B, L, n_kv_heads, K)
    mixed = np.asarray(causal_attention(query, key, value, "xla"))
    group = n_heads // n_kv_heads
    q, k, v = (np.asarray(array, np.float64) for array in (query, key, value))
    for b, i, h in np.ndindex(B, L, n_heads):
        scores = k[b, : i + 1, h // group] @ q[b, i, h] / np.sqrt(K)
        weights = np.exp(scores - scores.max())
        expected = weights @ v[b, : i + 1, h // group] / weights.sum()
        np.testing.assert_allclose(mixed[b, i, h], expected, atol=2e-6)


@pytest.mark.parametrize("rotary_size", [0, 2, 4, 8])
@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [(jnp.float32, 0.0), (jnp.bfloat16, 2**-8)],  # 8 bits: rounded once, at the end
)
def test_rotation_turns_pairs_by_angles_that_grow_with_position(rotary_size, dtype, rtol):
    rounded = random(0, B, L, 3, K).astype(dtype)
    turned = rotate(rounded, rotary_size, 100.0)
    assert turned.dtype == dtype
    x = np.asarray(rounded, np.float64)
    half = rotary_size // 2
    expected = x.copy()
    for position in range(L):
        for i in range(half):
            turn = np.exp(1j * position * 100.0 ** (-2 * i / rotary_size))
            pair = (x[:, position, :, i] + 1j * x[:, position, :, i + half]) * turn
            expected[:, position, :, i] = pair.real
            expected[:, position, :, i + half] = pair.imag
    np.testing.assert_allclose(np.asarray(turned, np.float64), expected, atol=2e-6, rtol=rtol)


def test_scores_of_rotated_vectors_depend_on_distance_alone():
    query, key = random(0, K), random(1, K)
    repeated = jnp.broadcast_to
    q = rotate(repeated(query, (1, L, 1, K)), K, 10_000.0)[0, :, 0]
    k = rotate(repeated(key, (1, L, 1, K)), K, 10_000.0)[0, :, 0]
    scores = np.asarray(q @ k.T)
    for distance in range(L):
        np.testing.assert_allclose(np.diag(scores, -distance), scores[distance, 0], atol=1e-5)


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
