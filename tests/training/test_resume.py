"""A run that is killed and started again ends as one that was left alone, to the last bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from bottleneck.analysis.runs import load_run
from bottleneck.training import metric_lines

TIMINGS = ("tokens_per_second", "mfu")

CONFIG = """
from bottleneck.config import base

def get_config():
    config = base()
    config.data.corpus = "text"
    config.data.paths = ({text!r},)
    config.data.cache_dir = {cache!r}
    config.data.tokenizer_vocab_size = 300
    config.data.heldout_fraction = 0.2
    config.model.vocab_size = 300
    config.model.d_model = 32
    config.model.n_layers = 2
    config.model.head_rank = 6
    config.optimizer.warmup_steps = 5
    config.train.steps = 60
    config.train.batch_size = 4
    config.train.sequence_length = 32
    config.train.log_every = 1
    config.probe.every = 20
    config.probe.tokens = 512
    config.checkpoint.every = 7
    return config
"""


# As on a user's machine: one device, and what starts again loads what the first start compiled.
OURS = ("XLA_FLAGS", "JAX_ENABLE_COMPILATION_CACHE")
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in OURS}


def start(command, *more):
    """The finished process of a command that runs to its end."""
    return subprocess.run([*command, *more], capture_output=True, text=True, env=ENVIRONMENT)


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """What starts the run, but for its folder."""
    folder = tmp_path_factory.mktemp("resume")
    words = [f"word{i}" for i in range(50)]
    source = random.Random(0)
    text = folder / "text"
    text.mkdir()
    for i in range(60):
        (text / f"{i}.txt").write_text(" ".join(source.choices(words, k=120)))
    config = folder / "config.py"
    config.write_text(CONFIG.format(text=str(text), cache=str(folder / "cache")))
    return [sys.executable, "-m", "bottleneck", "train", f"--config={config}"]


@pytest.fixture(scope="module")
def undisturbed(command, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    result = start(command, f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    return workdir


def last_step(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-2])["step"] if len(lines) > 1 else -1


def begin(command, workdir, until, stderr=subprocess.DEVNULL):
    """The run, started and still at work when the step `until` is on record."""
    process = subprocess.Popen(
        [*command, f"--workdir={workdir}"],
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        env=ENVIRONMENT,
        text=True,
    )
    deadline = time.monotonic() + 120
    while last_step(workdir) < until:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return process


def kill_after_step(command, workdir, step):
    """Starts the run and kills it at some moment once `step` is on record."""
    process = begin(command, workdir, step)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def metrics(workdir):
    """The last line of each (step, split), without timings."""
    last = {}
    for record in metric_lines.read(workdir):
        last[record["step"], record["split"]] = {
            name: value
            for name, value in record.items()
            if name not in TIMINGS and not name.endswith("seconds")
        }
    return last


def saved_arrays(workdir, step):
    """Every array of a checkpoint: the parameters and the optimizer's state."""
    items = {item: ocp.args.StandardRestore() for item in ("params", "opt_state")}
    with ocp.CheckpointManager(workdir / "checkpoints") as manager:
        restored = manager.restore(step, args=ocp.args.Composite(**items))
    return jax.tree_util.tree_leaves_with_path(dict(restored))


def assert_same_run(workdir, expected):
    assert metrics(workdir) == metrics(expected)
    steps = load_run(expected).steps
    assert load_run(workdir).steps == steps
    ours, theirs = (saved_arrays(folder, steps[-1]) for folder in (workdir, expected))
    assert [path for path, _ in ours] == [path for path, _ in theirs]
    assert len(ours) > 2 * len(jax.tree.leaves(load_run(expected).params()))  # Adam keeps two
    for (_, a), (_, b) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
    probes = sorted(path.name for path in (expected / "probes").iterdir())
    assert sorted(path.name for path in (workdir / "probes").iterdir()) == probes
    for name in probes:
        with np.load(workdir / "probes" / name) as a, np.load(expected / "probes" / name) as b:
            assert a.files == b.files
            for key in a.files:
                np.testing.assert_array_equal(a[key], b[key])


def test_a_run_killed_twice_ends_bit_identical(command, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    kill_after_step(command, workdir, 12)  # between the saves at 7 and 14
    kill_after_step(command, workdir, 40)  # at the probe of 40
    result = start(command, f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    assert "continuing from step" in result.stderr
    assert_same_run(workdir, undisturbed)


def test_sigterm_saves_the_step_at_hand_and_nothing_is_done_twice(command, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    process = begin(command, workdir, until=30, stderr=subprocess.PIPE)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, error
    saved = load_run(workdir).steps[-1]
    assert saved >= 30 and f"SIGTERM: saved step {saved}" in error
    assert max(step for step, _ in metrics(workdir)) == saved
    lines = (workdir / "metrics.jsonl").read_text().count("\n")
    assert start(command, f"--workdir={workdir}").returncode == 0
    assert (workdir / "metrics.jsonl").read_text().count("\n") - lines == sum(
        step > saved for step, _ in metrics(undisturbed)
    )
    assert_same_run(workdir, undisturbed)


def test_a_finished_run_says_so_and_does_nothing(command, undisturbed):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}
    result = start(command, f"--workdir={undisturbed}")
    assert result.returncode == 0
    assert "complete; nothing to do" in result.stderr.replace("\n", " ")
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")} == before


def test_another_config_is_refused_and_the_fields_named(command, undisturbed):
    changed = ["--config.model.head_rank=None", "--config.train.steps=61"]
    result = start(command, f"--workdir={undisturbed}", *changed)
    assert result.returncode == 2
    assert "model.head_rank: 6 → None; train.steps: 60 → 61" in result.stderr


def test_a_config_that_was_damaged_is_one_line(command, undisturbed, tmp_path):
    text = (undisturbed / "config.json").read_text()
    for content in (text[:100], text.replace('"d_model": 32', '"d_model": 33')):
        (tmp_path / "config.json").write_text(content)
        result = start(command, f"--workdir={tmp_path}")
        assert result.returncode == 2, result.stderr
        assert f"{tmp_path / 'config.json'} is damaged" in result.stderr
        assert "Traceback" not in result.stderr


def test_a_folder_that_is_no_run_is_refused(command, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    result = start(command, f"--workdir={tmp_path}")
    assert result.returncode == 2
    assert "is not empty and holds no run" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
