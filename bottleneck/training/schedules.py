"""Learning rates over the course of training: a linear warm-up, then a cosine."""

import optax

from bottleneck.config import OptimizerConfig


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns update number (from 0) → learning rate, which ends at final_fraction of the peak."""
    peak, n_warmup = config.learning_rate, config.warmup_steps
    cosine = optax.cosine_decay_schedule(peak, max(1, steps - n_warmup - 1), config.final_fraction)
    # Update i of the warm-up has (i + 1)/(warmup_steps + 1) of the peak, never 0.
    warmup = optax.linear_schedule(peak / (n_warmup + 1), peak, max(1, n_warmup))
    return optax.join_schedules([warmup, cosine], [n_warmup])
