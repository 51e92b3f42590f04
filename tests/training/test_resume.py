"""A run that is killed and started again ends as one that was left alone, to the last bit."""

import os
import signal
import subprocess
import sys

import pytest
from processes import HANGING, await_moment
from small_runs import assert_same_run, last_step, metrics, write_experiment

from bottleneck import runs

SETTINGS = {"model.head_rank": 6, "train.steps": 60, "probe.every": 20, "checkpoint.every": 7}

# As on a user's machine: one device, and what starts again loads what the first start compiled.
OURS = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in OURS}


def start(command, *more):
    """The finished process of a command that runs to its end."""
    return subprocess.run([*command, *more], capture_output=True, text=True, env=ENVIRONMENT)


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """What starts the run, but for its folder."""
    folder = tmp_path_factory.mktemp("resume")
    config = write_experiment(folder, SETTINGS)
    return [sys.executable, "-m", "bottleneck", "train", f"--config={config}"]


@pytest.fixture(scope="module")
def undisturbed(command, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    result = start(command, f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    return workdir


def begin(command, workdir, until, stderr=subprocess.DEVNULL):
    """The run, started and still at work when the step `until` is on record."""
    process = subprocess.Popen(
        [*command, f"--workdir={workdir}"],
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        env=ENVIRONMENT,
        text=True,
    )
    await_moment(lambda: last_step(workdir) >= until, process)
    return process


def kill_after_step(command, workdir, step):
    """Starts the run and kills it at some moment once `step` is on record."""
    process = begin(command, workdir, step)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


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
    _, error = process.communicate(timeout=HANGING)
    assert process.returncode == 128 + signal.SIGTERM, error
    saved = runs.load(workdir).steps[-1]
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
    assert (
        f"--workdir={undisturbed} holds a run with model.head_rank=6, train.steps=60; now "
        "model.head_rank=None, train.steps=61: choose a new folder, or the old values"
    ) in result.stderr


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
    result = start(command, f"--workdir={tmp_path / 'thesis.tex'}")
    assert result.returncode == 2 and "thesis.tex is a file; choose a new folder" in result.stderr
