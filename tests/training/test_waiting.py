"""The time that the loop waits for data: under a reason of its own, and part of training."""

import dataclasses
import json
import time

import pytest

from bottleneck.config import Config, ModelConfig
from bottleneck.training.reporter import Reporter


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only where a test lets them."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def records(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return {record["split"]: record for record in map(json.loads, lines)}


def test_waiting_for_data_is_booked_and_slows_the_tokens_a_second(clock, tmp_path):
    config = Config(model=ModelConfig(d_model=32, n_layers=1))
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, log_every=1))

    def slow():
        for step in range(2):
            clock[0] += 3.0
            yield step

    with Reporter(config, tmp_path, 0, 1e9, lambda step: []) as report:
        with report.booked("probe"):
            clock[0] += 10.0
        for step in report.waited("data", slow()):
            clock[0] += 1.0
            report.train(step + 1, {"loss": 1.0, "grad_norm": 1.0, "grad_norms": {}})
        report.settle()
        report.finish(2)
    found = records(tmp_path)
    assert found["time"]["data_seconds"] == 6.0
    assert found["time"]["probe_seconds"] == 10.0
    assert found["time"]["seconds"] == 18.0
    # Step 1 took 4 s of the clock and is read once step 2, of 4 s more, has been dispatched.
    assert found["train"]["step"] == 2
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert first["tokens_per_second"] == config.tokens_per_step / 8.0


def test_waited_passes_on_every_item_in_order(clock, tmp_path):
    config = Config(model=ModelConfig(d_model=32, n_layers=1))
    with Reporter(config, tmp_path, 0, 1e9, lambda step: []) as report:
        assert list(report.waited("data", iter([0, 3, 5]))) == [0, 3, 5]
