"""on_worker.sh on this machine: the program outlives its caller, can be asked after and stopped."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import HANGING

from bottleneck.parallel.slices import flags_of

ROOT = Path(__file__).parents[2]

# Stands where the worker's Python is: takes the table's module as it is, and else plays a run.
PYTHON = """#!/bin/sh
if [ "$2" = bottleneck.parallel.slices ]; then exec {python} "$@"; fi
echo "flags: $LIBTPU_INIT_ARGS"
echo "arguments: $*"
trap 'echo saved; exit 143' TERM
[ "$4" = fail ] && exit 3
while true; do sleep 0.05; done
"""


@pytest.fixture
def worker(tmp_path):
    home = tmp_path / "bottleneck"
    shutil.copytree(ROOT / "launch", home / "launch")
    shutil.copytree(ROOT / "bottleneck/parallel", home / "bottleneck/parallel")
    for name in ("__init__.py", "errors.py"):
        shutil.copy(ROOT / "bottleneck" / name, home / "bottleneck")
    python = home / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON.format(python=sys.executable))
    python.chmod(0o755)

    def call(*arguments, code=0):
        result = subprocess.run(
            [home / "launch/on_worker.sh", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=HANGING,
            start_new_session=True,  # which ends, as an ssh does
        )
        assert result.returncode == code, result
        return result.stdout.strip()

    yield home, call
    call("stop")


def status_after(call, before):
    deadline = time.monotonic() + HANGING
    while (status := call("status")) == before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return status


def test_a_program_runs_on_is_not_started_twice_and_ends_when_told(worker):
    home, call = worker
    assert call("status") == "not started"
    started = call("start", "v5e:4x4", "2", "--", "train", "--workdir=gs://b/a run")
    assert started.startswith("started, as process")
    assert call("status") == "running"
    assert "running already" in call("start", "v5e:4x4", "2", "--", "train")
    assert call("stop") == "stopped"
    assert status_after(call, "exit unknown") == "exit 143"
    flags = " ".join(f"--{flag.name}={flag.value}" for flag in flags_of("v5e", 2))
    assert (home / "launch.log").read_text().splitlines() == [
        f"flags: {flags}",
        "arguments: -m bottleneck train --workdir=gs://b/a run",
        "saved",
    ]


def test_the_exit_code_of_a_program_that_failed_is_kept_until_the_next_start(worker):
    _, call = worker
    call("start", "v5e:4x4", "1", "--", "x", "fail")
    assert status_after(call, "running") in ("exit 3", "exit unknown")
    assert status_after(call, "exit unknown") == "exit 3"
    call("start", "v5e:4x4", "1", "--", "train")
    assert call("status") == "running"


def test_a_process_of_another_program_with_the_same_number_is_not_ours(worker):
    home, call = worker
    (home / "launch.pid").write_text("1\n")
    assert call("status") == "exit unknown"
