"""The scan over layers, and the arrays that each layer keeps for its backward pass.

Arrays that may be kept are named where they are made, and policies choose among the names. The
backward pass computes all others again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name as named

from bottleneck.model.kernels.cpu import computed_once
from bottleneck.model.kernels.device import TPU_SUBLANES, platform
from bottleneck.parallel.mesh import devices_along

__all__ = ["ATTENTION", "PROJECTED", "WIDE", "named", "reference", "scan_layers"]

PROJECTED = "projected"  # queries, keys, values and attention's outputs
ATTENTION = "attention"  # mixed values, log-sum-exps of its kernel
WIDE = "wide"  # the MLP's first products

# (hidden [B, L, D], parameters) → (hidden states after the layer, a small tree of statistics)
Layer = Callable[[jax.Array, Any], tuple[jax.Array, Any]]

_policies = jax.checkpoint_policies


def _kernel_of_cudnn(primitive: Any, *_: Any, **__: Any) -> bool:
    """Returns True for flash attention on CUDA, a primitive of jax that no name reaches."""
    return primitive.name.startswith("dot_product_attention_fwd")


_POLICIES = {
    "dots": _policies.save_only_these_names(PROJECTED, WIDE),
    "attention": _policies.save_from_both_policies(
        _policies.save_only_these_names(PROJECTED, ATTENTION), _kernel_of_cudnn
    ),
    "full": _policies.nothing_saveable,
}


def reference(layer: Layer, hidden_BxLxD: jax.Array, stacked: Any) -> tuple[jax.Array, Any]:
    """`scan_layers` as a loop in Python."""
    statistics = []
    for index in range(jax.tree.leaves(stacked)[0].shape[0]):
        params = jax.tree.map(lambda leaf, index=index: leaf[index], stacked)
        hidden_BxLxD, found = layer(hidden_BxLxD, params)
        statistics.append(found)
    return hidden_BxLxD, jax.tree.map(lambda *each: jnp.stack(each), *statistics)


def scan_layers(
    layer: Layer, hidden_BxLxD: jax.Array, stacked: Any, remat: str
) -> tuple[jax.Array, Any]:
    """Takes hidden states through equal layers, one after another.

    Args:
        stacked: parameters of all layers, [n_layers, ...].
        remat: "none", or a policy of `config.compute.remat`.
    Returns: the hidden states after the last layer, and the stacked statistics, [n_layers, ...].
    """
    # A TPU gathers columns that do not fill its sublanes in a layout that is slow to convert.
    # Slicing a layer from the stack first avoids it.
    own_columns = hidden_BxLxD.shape[-1] // devices_along("fsdp")
    slice_first = platform() == "tpu" and own_columns % TPU_SUBLANES != 0

    def one_layer(hidden: jax.Array, params: Any) -> tuple[jax.Array, Any]:
        hidden = computed_once(hidden)
        if slice_first:
            params = jax.lax.optimization_barrier(params)
        return layer(hidden, params)

    if remat != "none":
        # The scan already keeps the compiler from undoing this; prevent_cse would only cost.
        one_layer = jax.checkpoint(one_layer, policy=_POLICIES[remat], prevent_cse=False)
    # A CPU copies the arrays that a scan stacks for the backward pass.
    unroll = remat == "none" and platform() == "cpu"
    return jax.lax.scan(one_layer, hidden_BxLxD, stacked, unroll=unroll)
