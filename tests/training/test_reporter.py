"""What is written of each step, when, and what a loss or gradient that is not finite leads to."""

import dataclasses
import json
import time

import numpy as np
import pytest
from made_up_runs import probe_of

from bottleneck.config import Config, ModelConfig, OptimizerConfig, TrainConfig
from bottleneck.errors import Diverged
from bottleneck.training.reporter import Reporter

PEAK_FLOPS = 1e12
CONFIG = Config(
    model=ModelConfig(vocab_size=8192, d_model=64, n_heads=2, n_layers=3, head_rank=16),
    train=TrainConfig(steps=8, batch_size=4, sequence_length=32, log_every=3),
    optimizer=OptimizerConfig(learning_rate=0.5, warmup_steps=3, final_fraction=0.1),
)
TOKENS = 4 * 32  # of a step


def with_training(**fields):
    return dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, **fields))


def reporter(workdir, config=CONFIG, start=0):
    return Reporter(config, workdir, start, PEAK_FLOPS, lambda step: [10 * step, 10 * step + 1])


def metrics(loss, norm=1.0):
    return {"loss": loss, "grad_norm": norm, "grad_norms": {"a/kernel": norm, "b/bias": 0.5}}


def records(workdir, split):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [record for record in lines if record["split"] == split]


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only where a test lets them."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_a_line_has_the_numbers_of_its_own_step(clock, tmp_path):
    with reporter(tmp_path, start=2) as report:
        for step in range(3, 9):
            clock[0] += step
            report.train(step, metrics(step + 0.25, step + 0.5))
        report.settle()
        clock[0] += 10
        report.finish(8)
    found = records(tmp_path, "train")
    # Every third step, and the last.
    assert [line["step"] for line in found] == [3, 6, 8]
    assert [line["loss"] for line in found] == [3.25, 6.25, 8.25]
    assert [line["grad_norm"] for line in found] == [3.5, 6.5, 8.5]
    assert [line["tokens"] for line in found] == [step * TOKENS for step in (3, 6, 8)]
    # Update 3 of the warm-up has three quarters of the peak, update 4 the peak, the last a tenth.
    cosine = 0.5 * (0.1 + 0.9 * (1 + np.cos(np.pi * 2 / 4)) / 2)
    rates = [line["learning_rate"] for line in found]
    np.testing.assert_allclose(rates, [0.5 * 3 / 4, cosine, 0.05], rtol=1e-5)
    # Step 3 is read when step 4 has been dispatched, 7 s from the start, 6 after 18 more, and the
    # last after 8 more; read before them were steps 2, 3 and 6.
    speeds = [TOKENS / 7, 3 * TOKENS / 18, 2 * TOKENS / 8]
    np.testing.assert_allclose([line["tokens_per_second"] for line in found], speeds)
    layers, head, attention = 3 * 12 * 64 * 64, 16 * (64 + 8192), 3 * 2 * 2 * 64 * 32 / 2
    flops = 3 * (2 * layers + 2 * head + attention)
    np.testing.assert_allclose(
        [line["mfu"] for line in found], np.array(speeds) * flops / PEAK_FLOPS
    )
    (last,) = records(tmp_path, "time")
    assert (last["step"], last["tokens"], last["seconds"]) == (8, 8 * TOKENS, 43.0)


def test_a_step_is_read_only_when_the_next_has_been_dispatched(tmp_path):
    read = []

    class OnDevice:
        def __init__(self, step):
            self.step = step

        def __float__(self):
            read.append(self.step)
            return 1.0

    with reporter(tmp_path, with_training(log_every=1)) as report:
        for step in range(1, 5):
            report.train(step, metrics(OnDevice(step)))
            assert read == list(range(1, step))
        report.flush()
        assert read == [1, 2, 3, 4]
        assert [line["step"] for line in records(tmp_path, "train")] == [1, 2, 3, 4]


def test_a_bad_step_between_two_lines_of_the_log_is_seen_within_a_hundred_steps(tmp_path):
    with reporter(tmp_path, with_training(steps=10**6, log_every=10**6)) as report:
        report.train(1, metrics(float("nan")))
        for step in range(2, 101):
            report.train(step, metrics(1.0))
        with pytest.raises(Diverged, match="from step 1 the loss is nan"):
            report.train(101, metrics(1.0))


@pytest.mark.parametrize(
    ("loss", "norm"),
    [(np.nan, 1.0), (np.inf, 1.0), (-np.inf, 1.0), (2.0, np.nan), (2.0, np.inf)],
)
def test_a_loss_or_a_gradient_that_is_not_finite_is_bad(tmp_path, loss, norm):
    with reporter(tmp_path) as report:
        report.train(4, metrics(loss, norm))
        with pytest.raises(Diverged) as ended:
            report.settle()
    says = f"from step 4 the loss is {loss} and the norm of the gradient {norm}, at a learning rate"
    assert f"{says} of 5.00e-01" in str(ended.value)
    spoilt = "the gradient is not finite in a/kernel."
    assert (spoilt in str(ended.value)) == (not np.isfinite(norm))
    (facts,) = json.loads((tmp_path / "diagnosis.json").read_text())
    assert facts == {
        "step": 4,
        "loss": loss if np.isfinite(loss) else str(loss),
        "grad_norm": norm if np.isfinite(norm) else str(norm),
        "learning_rate": 0.5,
        "windows": [30, 31],  # of the batch that the step began with
        "grad_norms": {"a/kernel": norm if np.isfinite(norm) else str(norm), "b/bias": 0.5},
    }


@pytest.mark.parametrize("skips", [False, True])
def test_bad_steps_count_while_they_are_in_a_row(tmp_path, skips):
    config = with_training(bad_steps=3, skip_bad_batches=skips)
    bad = (1, 2, 4, 6, 7, 8)
    with reporter(tmp_path, config) as report:
        for step in range(1, 8):
            report.train(step, metrics(np.nan if step in bad else 1.0))
            report.settle()
            # What is skipped has spoilt nothing.
            assert report.is_spoilt == (step in bad and not skips)
        report.train(8, metrics(np.nan))
        with pytest.raises(Diverged, match="from step 6 to step 8 "):
            report.settle()
    diagnosis = json.loads((tmp_path / "diagnosis.json").read_text())
    assert [facts["step"] for facts in diagnosis] == [6, 7, 8]
    # The last one allowed is not skipped: it ends the run.
    skipped = records(tmp_path, "skipped")
    assert [line["step"] for line in skipped] == ([1, 2, 4, 6, 7] if skips else [])
    assert [line["tokens"] for line in skipped] == [line["step"] * TOKENS for line in skipped]
    assert all(np.isnan(line["loss"]) and line["grad_norm"] == 1.0 for line in skipped)
    assert [line["step"] for line in records(tmp_path, "train")] == [3, 6]


def test_a_run_that_ends_spoilt_says_so_and_one_that_does_not_goes_on(tmp_path):
    with reporter(tmp_path, with_training(bad_steps=9)) as report:
        report.end_spoilt()
        report.train(1, metrics(np.inf))
        report.settle()
        with pytest.raises(Diverged, match="from step 1 the loss is inf"):
            report.end_spoilt()


def test_a_probe_is_two_lines_and_a_file_of_its_own_step(tmp_path, capsys):
    record = probe_of(
        loss=1.5, singular_entropy=2.5, effective_rank=7.5, singular_values=np.arange(3.0)
    )
    with reporter(tmp_path) as report:
        report.probe(6, record)
    (evaluation,), (probe,) = records(tmp_path, "eval"), records(tmp_path, "probe")
    assert (evaluation["step"], evaluation["tokens"]) == (6, 6 * TOKENS)
    assert (evaluation["loss"], evaluation["loss_se"]) == (1.5, 0.1)
    assert (probe["step"], probe["tokens"]) == (6, 6 * TOKENS)
    assert (probe["singular_entropy"], probe["effective_rank"]) == (2.5, 7.5)
    with np.load(tmp_path / "probes" / "00000006.npz") as arrays:
        assert arrays["singular_values"].tolist() == [0, 1, 2]
    assert "step 6: validation loss 1.5000 ± 0.1000" in capsys.readouterr().err
