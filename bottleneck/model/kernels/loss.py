"""The way through the cross-entropy that suits a device, its types and where the head lies.

All ways have one signature. From this device's tokens and its share of the head, `statistics` gives
log-sum-exps and target logits; `gradients` gives those and the gradients.
"""

from __future__ import annotations

from types import ModuleType

import jax
import jax.numpy as jnp

from bottleneck.model.kernels import loss_by_rows, loss_by_tokens, loss_cpu
from bottleneck.model.kernels.loss_pieces import Chunking, Layout
from bottleneck.parallel.mesh import platform


def way(layout: Layout, chunking: Chunking, projected: jax.Array) -> ModuleType:
    """Returns the module that takes these tokens through the loss."""
    if chunking.is_full and layout.columns:
        return loss_by_rows
    if layout == Layout() and projected.dtype == jnp.float32 and platform() == "cpu":
        return loss_cpu
    return loss_by_tokens


def sums(
    layout: Layout, found: tuple[jax.Array, jax.Array], weights: jax.Array, z_loss: float
) -> tuple[jax.Array, jax.Array]:
    """Over all tokens of all devices: Σ w·(CE + z_loss·lse²) and Σ w·CE."""
    lse, target_logits = found
    loss = lse - target_logits
    objective = jnp.sum(weights * (loss + z_loss * lse**2))
    return jax.lax.psum((objective, jnp.sum(weights * loss)), layout.batch)
