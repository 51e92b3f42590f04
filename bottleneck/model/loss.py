"""Cross-entropy of a head whose logits are never all in memory, on one device or on a mesh.

B: sequences; L: tokens; D: hidden width; V: rows of the head; K: columns of its rows, R or D.
Log-sum-exp and all sums are float32. `kernels.loss` computes one device's share; this module runs
it on the mesh in context. The batch is split over `replica` and `fsdp`, the head's rows over
`tensor`, their columns over `fsdp`. No device holds all columns of a full head; the few columns of
a factored one are gathered first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from bottleneck.model.head import HeadFactors
from bottleneck.model.kernels import loss as kernel
from bottleneck.model.kernels.loss_pieces import Chunking, Layout
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
    arrays = (factors.project(hidden_BxLxD), factors.rows, targets_BxL, weights_BxL)
    objective, loss = _sums(*arrays, z_loss, Chunking(factors.n_rows, factors.is_full, chunk))
    return objective, jax.lax.stop_gradient(loss)


def token_losses(
    factors: HeadFactors,
    hidden_BxLxD: jax.Array,
    targets_BxL: jax.Array,
    *,
    chunk: int,
) -> jax.Array:
    """Returns float32 [B, L], the cross-entropy of each token in nats; see `cross_entropy`."""

    def local(layout: Layout, *arrays: jax.Array) -> jax.Array:
        algorithm = kernel.algorithm(layout, chunking, arrays[0])
        lse, target_logits = algorithm.statistics(layout, chunking, *arrays)
        return lse - target_logits

    chunking = Chunking(factors.n_rows, factors.is_full, chunk)
    arrays = (factors.project(hidden_BxLxD), factors.rows, targets_BxL)
    return _on_mesh(local, "token", arrays, chunking)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _sums(
    projected: jax.Array,
    rows: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    z_loss: float,
    chunking: Chunking,
) -> tuple[jax.Array, jax.Array]:
    def local(
        layout: Layout,
        projected: jax.Array,
        rows: jax.Array,
        targets: jax.Array,
        weights: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        algorithm = kernel.algorithm(layout, chunking, projected)
        found = algorithm.statistics(layout, chunking, projected, rows, targets)
        return kernel.sums(layout, found, weights, z_loss)

    return _on_mesh(local, ("sum", "sum"), (projected, rows, targets, weights), chunking)


def _sums_and_gradients(
    projected: jax.Array,
    rows: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    z_loss: float,
    chunking: Chunking,
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    def local(
        layout: Layout,
        projected: jax.Array,
        rows: jax.Array,
        targets: jax.Array,
        weights: jax.Array,
    ) -> Any:
        algorithm = kernel.algorithm(layout, chunking, projected)
        found, gradients = algorithm.gradients(
            layout, chunking, z_loss, projected, rows, targets, weights
        )
        return kernel.sums(layout, found, weights, z_loss), gradients

    outputs = (("sum", "sum"), ("token", "rows"))
    return _on_mesh(local, outputs, (projected, rows, targets, weights), chunking)


def _scale_gradients(
    z_loss: float,
    chunking: Chunking,
    gradients: tuple[jax.Array, jax.Array],
    cotangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array, None, None]:
    projected, rows = ((cotangents[0] * g).astype(g.dtype) for g in gradients)
    return projected, rows, None, None


_sums.defvjp(_sums_and_gradients, _scale_gradients)


def _on_mesh(
    local: Callable[..., Any], outputs: Any, arrays: tuple[jax.Array, ...], chunking: Chunking
) -> Any:
    """Runs local(layout, projected, rows, targets, …) on each device's share of the arrays.

    Args:
        outputs: the placement of each result: that of "token" arrays, of the "rows", or a "sum".
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return local(Layout(), *arrays)
    per_token = partition_spec(["batch"])
    is_split = mesh.shape["fsdp"] > 1 and arrays[1].shape[1] % mesh.shape["fsdp"] == 0
    rows = partition_spec(["vocab", "embed" if is_split else "rank"])
    specs = {"token": per_token, "rows": rows, "sum": PartitionSpec()}
    layout = Layout(
        batch=("replica", "fsdp"),
        vocab=("tensor",),
        columns=("fsdp",) if is_split else (),
    )
    return jax.shard_map(
        functools.partial(local, layout),
        in_specs=(per_token, specs["rows"], *(per_token for _ in arrays[2:])),
        out_specs=jax.tree.map(lambda kind: specs[kind], outputs),
        check_vma=False,
    )(*arrays)
