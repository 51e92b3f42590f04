"""Cross-entropy of a head whose logits are never all in memory, on one device or on a mesh.

B: sequences; L: tokens; D: hidden width; V: rows of the head; K: columns of its rows, R or D.
Log-sum-exp and all sums are float32. `kernels.loss` computes one device's share; this module runs
it on the mesh in context. The batch is split over `replica` and `fsdp`, the head's rows over
`tensor`, their columns over `fsdp`. No device holds all columns of a full head; the few columns of
a factored one are gathered first.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from bottleneck.model.head import HeadFactors
from bottleneck.model.kernels import loss as kernel
from bottleneck.model.kernels.loss_pieces import LossPlan, Share
from bottleneck.parallel.mesh import partition_spec


def cross_entropy(
    factors: HeadFactors,
    hidden_BxLxD: jax.Array,
    targets_BxL: jax.Array,
    weights_BxL: jax.Array,
    *,
    chunk: int,
    z_loss: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Returns sums over tokens: the objective, and the cross-entropy, which carries no gradient.

    The objective is Σ w·(CE + z_loss·lse²), the cross-entropy Σ w·CE in nats; both are float32
    scalars. Divide by Σ w for the mean.

    Args:
        factors: the head; its gradient has the type of its factors.
        hidden_BxLxD: float32 or bfloat16 hidden states, which set the type of the products.
        targets_BxL: int32 in [0, n_rows) of the head.
        weights_BxL: float32; 0 ignores a token. Not differentiated.
        chunk: tokens, roughly, whose float32 logits [chunk, V] a device holds at one time.
        z_loss: weight of the squared log-partition (PaLM, Chowdhery et al. 2022, section 5).
    """
    plan = LossPlan(factors.n_rows, factors.is_full, chunk, z_loss)
    arrays = (factors.project(hidden_BxLxD), factors.rows, targets_BxL, weights_BxL)
    objective, loss = _sums(plan, *arrays)
    return objective, jax.lax.stop_gradient(loss)


def token_losses(
    factors: HeadFactors, hidden_BxLxD: jax.Array, targets_BxL: jax.Array, *, chunk: int
) -> jax.Array:
    """Returns float32 [B, L], the cross-entropy of each token in nats; see `cross_entropy`."""

    def local(plan: LossPlan, share: Share) -> jax.Array:
        lse, target_logits = kernel.algorithm(plan, share).statistics(plan, share)
        return lse - target_logits

    plan = LossPlan(factors.n_rows, factors.is_full, chunk)
    arrays = (factors.project(hidden_BxLxD), factors.rows, targets_BxL)
    return _on_mesh(local, "token", plan, arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums(plan: LossPlan, *arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sums of `cross_entropy`, of arrays that make up a `Share` on each device."""

    def local(plan: LossPlan, share: Share) -> tuple[jax.Array, jax.Array]:
        found = kernel.algorithm(plan, share).statistics(plan, share)
        return kernel.sums(plan, found, share.weights)

    return _on_mesh(local, ("sum", "sum"), plan, arrays)


def _sums_and_gradients(plan: LossPlan, *arrays: jax.Array) -> Any:
    def local(plan: LossPlan, share: Share) -> Any:
        found, gradients = kernel.algorithm(plan, share).gradients(plan, share)
        return kernel.sums(plan, found, share.weights), gradients

    return _on_mesh(local, (("sum", "sum"), ("token", "rows")), plan, arrays)


def _scale_gradients(_: LossPlan, gradients: Any, cotangents: Any) -> tuple[Any, Any, None, None]:
    projected, rows = ((cotangents[0] * g).astype(g.dtype) for g in gradients)
    return projected, rows, None, None


_sums.defvjp(_sums_and_gradients, _scale_gradients)


def _on_mesh(
    local: Callable[..., Any], outputs: Any, plan: LossPlan, arrays: tuple[jax.Array, ...]
) -> Any:
    """Runs a function on each device's share of the arrays.

    Each result is placed like the "token" arrays, like the "rows", or as a "sum".
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return local(plan, Share(*arrays))
    is_split = mesh.shape["fsdp"] > 1 and arrays[1].shape[1] % mesh.shape["fsdp"] == 0
    columns = ("fsdp",) if is_split else ()
    plan = dataclasses.replace(plan, batch=("replica", "fsdp"), vocab=("tensor",), columns=columns)
    token = partition_spec(["batch"])
    rows = partition_spec(["vocab", "embed" if is_split else "rank"])
    specs = {"token": token, "rows": rows, "sum": PartitionSpec()}
    return jax.shard_map(
        lambda *arrays: local(plan, Share(*arrays)),
        in_specs=(token, rows, *(token for _ in arrays[2:])),
        out_specs=jax.tree.map(lambda kind: specs[kind], outputs),
        check_vma=False,
    )(*arrays)
