"""AdamW with Pythia's settings: gradient clipping, and weight decay on matrices only."""

from typing import Any

import jax
import optax

from bottleneck.config import OptimizerConfig
from bottleneck.training.schedules import learning_rate_schedule


def make_optimizer(
    config: OptimizerConfig, steps: int, logical_axes: Any
) -> optax.GradientTransformation:
    """Returns the update rule; `logical_axes` tell matrices from stacked biases."""
    is_matrix = jax.tree.map(
        lambda axes: sum(axis is not None for axis in axes) >= 2,
        logical_axes,
        is_leaf=lambda node: isinstance(node, tuple),
    )
    adamw = optax.adamw(
        learning_rate_schedule(config, steps),
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=is_matrix,
    )
    clip_norm = config.clip_norm
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    return optax.chain(clip, adamw)
