"""AdamW as Pythia's: decay on matrices only, clipping, warm-up, then a cosine."""

from __future__ import annotations

from typing import Any

import jax
import optax

from bottleneck.config import OptimizerConfig


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Update number (from 0) → learning rate; the last update has final_fraction of the peak."""
    cosine = optax.cosine_decay_schedule(
        config.learning_rate,
        max(1, steps - config.warmup_steps - 1),
        alpha=config.final_fraction,
    )
    # Update i of the warm-up has (i + 1)/(warmup_steps + 1) of the peak: none is wasted on 0.
    unit = config.learning_rate / (config.warmup_steps + 1)
    warmup = optax.linear_schedule(unit, config.learning_rate, max(1, config.warmup_steps))
    return optax.join_schedules([warmup, cosine], [config.warmup_steps])


def make_optimizer(
    config: OptimizerConfig, steps: int, logical_axes: Any
) -> optax.GradientTransformation:
    """The update rule; `logical_axes` tell matrices from stacked biases of the same shape."""
    is_matrix = jax.tree.map(
        lambda axes: sum(axis is not None for axis in axes) >= 2,
        logical_axes,
        is_leaf=lambda node: isinstance(node, tuple),
    )
    clip = (
        optax.identity()
        if config.clip_norm is None
        else optax.clip_by_global_norm(config.clip_norm)
    )
    return optax.chain(
        clip,
        optax.adamw(
            learning_rate_schedule(config, steps),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=is_matrix,
        ),
    )
