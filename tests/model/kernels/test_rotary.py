"""Rotation against complex numbers in float64, on every platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bottleneck.model.kernels import rotary
from bottleneck.model.kernels.rotary import rotate

B, L, K = 2, 9, 8

# A TPU moves entries by a product, of as many heads at a time as fill 128 lanes.
machines = pytest.mark.parametrize(("kind", "n_heads"), [("cpu", 3), ("tpu", 3), ("tpu", 32)])


def random(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@machines
@pytest.mark.parametrize("rotary_size", [0, 2, 4, 8])
@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [(jnp.float32, 0.0), (jnp.bfloat16, 2**-8)],  # 8 bits: rounded once, at the end
)
def test_pairs_are_turned_by_angles_that_grow_with_position(
    kind, n_heads, rotary_size, dtype, rtol, monkeypatch
):
    monkeypatch.setattr(rotary, "platform", lambda: kind)
    rounded = random(0, B, L, n_heads, K).astype(dtype)
    turned = rotate(rounded, rotary_size, 100.0)
    assert turned.dtype == dtype
    expected = rotary.reference(rounded, rotary_size, 100.0)
    np.testing.assert_allclose(np.asarray(turned, np.float64), expected, atol=2e-6, rtol=rtol)


@machines
@pytest.mark.parametrize("rotary_size", [0, 4, 8])
def test_the_gradient_is_the_transpose(kind, n_heads, rotary_size, monkeypatch):
    monkeypatch.setattr(rotary, "platform", lambda: kind)

    def turn(x):
        return rotate(x, rotary_size, 100.0)

    x, gradient = random(0, 1, L, n_heads, K), random(1, 1, L, n_heads, K)
    forward = jax.jacobian(lambda one: turn(one[None])[0])(x[0])
    _, pull = jax.vjp(turn, x)
    np.testing.assert_allclose(
        pull(gradient)[0][0], jnp.einsum("lhk,lhkmji->mji", gradient[0], forward), atol=2e-6
    )


def test_scores_of_rotated_vectors_depend_on_distance_alone():
    query, key = random(0, K), random(1, K)
    repeated = jnp.broadcast_to
    q = rotate(repeated(query, (1, L, 1, K)), K, 10_000.0)[0, :, 0]
    k = rotate(repeated(key, (1, L, 1, K)), K, 10_000.0)[0, :, 0]
    scores = np.asarray(q @ k.T)
    for distance in range(L):
        np.testing.assert_allclose(np.diag(scores, -distance), scores[distance, 0], atol=1e-5)


@pytest.mark.parametrize(
    ("n_heads", "size", "tensor", "expected"),
    [
        (12, 64, 1, 2),
        (12, 64, 4, 1),
        (16, 128, 1, 1),
        (8, 256, 1, 1),
        (12, 32, 1, 4),
        (6, 32, 1, 3),
    ],
)
def test_heads_fill_the_lanes_of_a_tpu_and_stay_on_their_device(
    n_heads, size, tensor, expected, monkeypatch
):
    monkeypatch.setattr(rotary, "devices_along", lambda _: tensor)
    monkeypatch.setattr(rotary, "platform", lambda: "tpu")
    assert rotary._heads_side_by_side(n_heads, size) == expected
    monkeypatch.setattr(rotary, "platform", lambda: "cpu")
    assert rotary._heads_side_by_side(n_heads, size) == 1


def test_a_tpu_moves_entries_without_rounding_them(monkeypatch):
    monkeypatch.setattr(rotary, "platform", lambda: "tpu")
    program = str(jax.make_jaxpr(lambda x: rotate(x, 4, 100.0))(random(0, B, L, 2, K)))
    assert program.count("dot_general[") == 1
    assert "Precision.HIGHEST, Precision.HIGHEST" in program.replace("\n", " ")
