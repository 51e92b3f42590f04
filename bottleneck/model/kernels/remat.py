"""What a layer keeps for its backward pass; the rest is computed again.

Arrays that may be kept are named where they are made, and the policies choose among the names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name as named

__all__ = ["ATTENTION", "PROJECTED", "WIDE", "checkpointed", "named"]

PROJECTED = "projected"  # what attention takes and what its output projection gives, [B, L, D]
ATTENTION = "attention"  # what the kernel of attention gives: the mixed values, log-sum-exps
WIDE = "wide"  # what the MLP's first products give, [B, L, F]

_policies = jax.checkpoint_policies


def _kernel_of_cudnn(primitive: Any, *_: Any, **__: Any) -> bool:
    """Flash attention on CUDA, which jax calls by a primitive of its own that has no names."""
    return primitive.name.startswith("dot_product_attention_fwd")


_POLICIES = {
    "dots": _policies.save_only_these_names(PROJECTED, WIDE),
    "attention": _policies.save_from_both_policies(
        _policies.save_only_these_names(PROJECTED, ATTENTION), _kernel_of_cudnn
    ),
    "full": _policies.nothing_saveable,
}


def checkpointed(layer: Callable[..., Any], remat: str) -> Callable[..., Any]:
    """The layer, a body of `jax.lax.scan`, with a policy of `config.compute.remat`, not "none"."""
    # Without a scan the compiler would undo rematerialisation; in one, prevent_cse only costs.
    return jax.checkpoint(layer, policy=_POLICIES[remat], prevent_cse=False)
