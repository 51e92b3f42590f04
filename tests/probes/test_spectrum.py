"""Singular values against float64 SVDs of the whole head; in the slow set, of a real one's size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bottleneck.aot.compile_check import topology_devices
from bottleneck.config import MeshConfig
from bottleneck.model.head import HeadFactors
from bottleneck.parallel.mesh import make_mesh
from bottleneck.probes.spectrum import head_spectrum, read_core, reduce_head

# (vocabulary, rows, D); Pythia's 50,277 tokens in 50,304 rows.
SMALL, REAL = (3000, 3072, 64), (50_277, 50_304, 512)
SIZES = [SMALL, pytest.param(REAL, marks=pytest.mark.slow)]
KINDS = ("flat", "power law", "condition 1e4", "collapsed")


def spectrum_of(kind, width):
    index = np.arange(width)
    return {
        "flat": np.ones(width),
        "power law": (1.0 + index) ** -0.7,
        "condition 1e4": np.geomspace(1, 1e-4, width),
        "collapsed": np.where(index == 0, 300.0, 1.0),
    }[kind]


@functools.cache
def bases(vocab_size, width):
    source = np.random.default_rng(0)
    left = np.linalg.qr(source.standard_normal((vocab_size, width)))[0]
    return left, np.linalg.qr(source.standard_normal((width, width)))[0]


def head_with(values, size, dtype=jnp.float32):
    """A head with these singular values up to rounding, whose padding would change them."""
    vocab_size, n_rows, width = size
    left, right = bases(vocab_size, width)
    rows = np.full((n_rows, width), 7.0)
    rows[:vocab_size] = (left * values) @ right.T
    return jnp.asarray(rows, dtype)


def svd(rows, vocab_size, *, centred=False):
    W = np.asarray(rows[:vocab_size], np.float64)
    return np.linalg.svd(W - W.mean(axis=0) if centred else W, compute_uv=False)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_singular_value_to_1e_5(kind, size):
    vocab_size, _, width = size
    rows = head_with(spectrum_of(kind, width), size)
    spectrum = read_core(HeadFactors(rows, None, vocab_size)).spectrum()
    np.testing.assert_allclose(spectrum.values, svd(rows, vocab_size), rtol=1e-5)
    assert spectrum.first_bounded_index == width


@pytest.mark.parametrize("size", SIZES)
def test_centred_of_bfloat16_parameters_with_a_mean_row(size):
    vocab_size, _, width = size
    rows = (head_with(spectrum_of("power law", width), size) + 0.02).astype(jnp.bfloat16)
    found = head_spectrum(HeadFactors(rows, None, vocab_size), centred=True)
    np.testing.assert_allclose(found, svd(rows, vocab_size, centred=True), rtol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_of_a_nearly_singular_head_it_says_what_is_only_a_bound(size):
    vocab_size, _, width = size
    rows = head_with(np.geomspace(1, 1e-9, width), size)
    spectrum = read_core(HeadFactors(rows, None, vocab_size)).spectrum()
    exact, found = svd(rows, vocab_size), spectrum.values
    first = spectrum.first_bounded_index
    # What is promised exact goes down to 1e-4 of the largest at least.
    assert np.sum(exact > 1e-4) <= first < width
    np.testing.assert_allclose(found[:first], exact[:first], rtol=1e-5)
    assert (found[first:] >= exact[first:] * (1 - 1e-5)).all()


def test_of_a_factored_head_without_making_it():
    (vocab_size, n_rows, width), rank = SMALL, 12
    source = np.random.default_rng(1)
    rows = source.standard_normal((n_rows, rank)) * np.geomspace(1, 1e-3, rank)
    basis = source.standard_normal((rank, width))
    factors = HeadFactors(
        jnp.asarray(rows, jnp.float32), jnp.asarray(basis, jnp.float32), vocab_size
    )
    A, B = (np.asarray(factor, np.float64) for factor in (factors.rows, factors.basis))
    for centred in (False, True):
        exact = svd(A @ B, vocab_size, centred=centred)[:rank]
        found = head_spectrum(factors, centred=centred)
        np.testing.assert_allclose(found[:rank], exact, rtol=1e-5)
        assert (found[rank:] == 0).all() and len(found) == width
    traced = str(jax.make_jaxpr(lambda f: reduce_head(f))(factors))
    assert f"[{n_rows},{rank}]" in traced
    assert f"[{n_rows},{width}]" not in traced and f"[{vocab_size},{width}]" not in traced


@pytest.mark.parametrize(
    ("sizes", "size"),
    [((1, 2, 2), SMALL), pytest.param((1, 4, 1), REAL, marks=pytest.mark.slow)],
)
def test_sharded_equals_unsharded(sizes, size):
    vocab_size, _, width = size
    rows = head_with(spectrum_of("power law", width), size)
    whole = head_spectrum(HeadFactors(rows, None, vocab_size))
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[:4])
    placed = jax.device_put(rows, NamedSharding(mesh, PartitionSpec("tensor", "fsdp")))
    with jax.set_mesh(mesh):
        found = head_spectrum(HeadFactors(placed, None, vocab_size))
    np.testing.assert_allclose(found, whole, rtol=1e-6)


@pytest.mark.slow
def test_compiles_for_a_tpu():
    pytest.importorskip("libtpu", reason="needs the [tpu] extra")
    vocab_size, n_rows, _ = REAL
    mesh = make_mesh(MeshConfig(1, 2, 2), topology_devices("v5e:2x2"))
    by_both = NamedSharding(mesh, PartitionSpec("tensor", "fsdp"))
    rows = jax.ShapeDtypeStruct((n_rows, 1024), jnp.float32, sharding=by_both)
    with jax.set_mesh(mesh):
        jax.jit(reduce_head).lower(HeadFactors(rows, None, vocab_size)).compile()
