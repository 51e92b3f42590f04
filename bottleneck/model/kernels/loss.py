"""The cross-entropy of one device's tokens, by the algorithm that suits the device and the head.

Each algorithm is a module with two functions. `statistics` returns the log-sum-exps and the logits
of the targets, `gradients` those and the gradients.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bottleneck.model.kernels import loss_by_rows, loss_by_tokens, loss_cpu
from bottleneck.model.kernels.device import platform
from bottleneck.model.kernels.loss_pieces import Found, LossPlan, Share


def reference(n_rows: int, z_loss: float, *share: jax.Array) -> Any:
    """`gradients` of the whole head on one device, in float64 with all logits in memory."""
    projected, rows, targets, weights = share
    h, A, w = (np.asarray(array, np.float64) for array in (projected, rows, weights[..., None]))
    logits = h @ A[:n_rows].T
    top = logits.max(-1, keepdims=True)
    lse = np.log(np.exp(logits - top).sum(-1, keepdims=True)) + top
    is_target = np.arange(n_rows) == np.asarray(targets)[..., None]
    G = w * (np.exp(logits - lse) * (1 + 2 * z_loss * lse) - is_target)
    by_rows = np.zeros_like(A)
    by_rows[:n_rows] = np.einsum("blv,blk->vk", G, h)
    return (lse[..., 0], (logits * is_target).sum(-1)), (G @ A[:n_rows], by_rows)


def algorithm(plan: LossPlan, share: Share) -> ModuleType:
    """Returns the module whose functions suit these tokens."""
    if plan.is_full and plan.columns:
        return loss_by_rows
    if not plan.batch and share.projected.dtype == jnp.float32 and platform() == "cpu":
        return loss_cpu
    return loss_by_tokens


def sums(plan: LossPlan, found: Found, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Σ w·(CE + z_loss·lse²) and Σ w·CE over all tokens of all devices."""
    lse, target_logits = found
    loss = lse - target_logits
    objective = jnp.sum(weights * (loss + plan.z_loss * lse**2))
    return jax.lax.psum((objective, jnp.sum(weights * loss)), plan.batch)
