"""The schedule of the learning rate, at its corners and against its formula."""

import numpy as np
import pytest

from bottleneck.config import OptimizerConfig
from bottleneck.training.schedules import learning_rate_schedule


def test_the_schedule_warms_up_peaks_and_ends_at_its_fraction():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=4, final_fraction=0.1)
    rates = [float(learning_rate_schedule(config, 20)(step)) for step in range(20)]
    np.testing.assert_allclose(rates[:5], [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-6)
    cosine = 0.1 + 0.9 * (1 + np.cos(np.pi * np.arange(16) / 15)) / 2
    np.testing.assert_allclose(rates[4:], cosine, rtol=1e-5)
    assert rates[-1] == pytest.approx(0.1)


@pytest.mark.parametrize(("warmup", "steps"), [(0, 1), (1, 1), (5, 5), (0, 2)])
def test_the_schedule_is_finite_for_the_shortest_runs(warmup, steps):
    schedule = learning_rate_schedule(OptimizerConfig(warmup_steps=warmup), steps)
    assert all(0 < float(schedule(step)) <= 1.0001e-3 for step in range(steps))
