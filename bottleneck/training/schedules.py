"""Learning rates over the course of training: a linear warm-up, then a cosine."""

from __future__ import annotations

import optax

from bottleneck.config import OptimizerConfig


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns update number (from 0) → learning rate, which ends at final_fraction of the peak."""
    cosine = optax.cosine_decay_schedule(
        config.learning_rate,
        max(1, steps - config.warmup_steps - 1),
        alpha=config.final_fraction,
    )
    # Update i of the warm-up has (i + 1)/(warmup_steps + 1) of the peak, never 0.
    unit = config.learning_rate / (config.warmup_steps + 1)
    warmup = optax.linear_schedule(unit, config.learning_rate, max(1, config.warmup_steps))
    return optax.join_schedules([warmup, cosine], [config.warmup_steps])
