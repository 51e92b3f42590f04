"""The scan over layers equals a loop, whatever the platform and the policy make of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bottleneck.config import MeshConfig
from bottleneck.model.kernels import remat
from bottleneck.model.kernels.remat import scan_layers
from bottleneck.parallel.mesh import make_mesh

N_LAYERS, D = 3, 16


def layer(hidden, params):
    return hidden + jnp.tanh(hidden @ params["kernel"]), {"largest": jnp.max(hidden)}


def inputs(d_model=D):
    keys = jax.random.split(jax.random.key(0), 2)
    kernels = jax.random.normal(keys[1], (N_LAYERS, d_model, d_model))
    return jax.random.normal(keys[0], (2, 5, d_model)), {"kernel": kernels}


@pytest.mark.parametrize("policy", ["none", "dots", "attention", "full"])
@pytest.mark.parametrize("kind", ["cpu", "tpu", "gpu"])
def test_hidden_states_statistics_and_gradients_are_those_of_a_loop(kind, policy, monkeypatch):
    monkeypatch.setattr(remat, "platform", lambda: kind)

    def loss(hidden, stacked, scan):
        hidden, statistics = scan(hidden, stacked)
        return jnp.sum(hidden**3), (hidden, statistics)

    def gradients(scan):
        return jax.grad(loss, argnums=(0, 1), has_aux=True)(*inputs(), scan)

    found = gradients(lambda *arrays: scan_layers(layer, *arrays, policy))
    expected = gradients(lambda *arrays: remat.reference(layer, *arrays))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())
    assert found[1][1]["largest"].shape == (N_LAYERS,)


@pytest.mark.parametrize(
    ("kind", "d_model", "is_sliced_first"),
    [("tpu", 16, True), ("tpu", 32, False), ("tpu", 64, False), ("gpu", 16, False)],
)
def test_a_tpu_slices_the_stack_first_if_columns_do_not_fill_its_sublanes(
    kind, d_model, is_sliced_first, monkeypatch
):
    monkeypatch.setattr(remat, "platform", lambda: kind)
    with jax.set_mesh(make_mesh(MeshConfig(1, 4, 1), jax.devices()[:4])):
        program = jax.make_jaxpr(lambda *arrays: scan_layers(layer, *arrays, "none"))(
            *inputs(d_model)
        )
    assert ("optimization_barrier" in str(program)) == is_sliced_first


@pytest.mark.parametrize(
    ("kind", "policy", "is_unrolled"),
    [("cpu", "none", True), ("cpu", "full", False), ("tpu", "none", False)],
)
def test_layers_are_unrolled_on_a_cpu_if_nothing_is_rematerialised(
    kind, policy, is_unrolled, monkeypatch
):
    monkeypatch.setattr(remat, "platform", lambda: kind)
    program = jax.make_jaxpr(lambda *arrays: scan_layers(layer, *arrays, policy))(*inputs())
    (scan,) = [step for step in program.eqns if step.primitive.name == "scan"]
    assert scan.params["unroll"] == (N_LAYERS if is_unrolled else 1)
