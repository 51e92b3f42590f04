"""Many processes over one folder: what is skipped, resumed, retried, shared out and recorded."""

import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from processes import HANGING
from rich.console import Console

from bottleneck.config import base
from bottleneck.errors import UserError
from bottleneck.sweep.cells import expand
from bottleneck.sweep.runner import Places, alone, failure_recorded, run_all, state_of
from bottleneck.sweep.table import status_table, watch

CELLS = expand(base().to_dict(), [{"seed": seed} for seed in range(4)])


def shell(script):
    """A command for each cell: the script, $1 the cell's name."""
    return lambda cell: ["sh", "-c", script, "cell", cell.name]


def finish(root):
    return f'mkdir -p "{root}/$1"; echo "$1" >> "{root}/started"; touch "{root}/$1/COMPLETE"'


def started(root):
    return sorted((root / "started").read_text().split())


def states(root):
    return [state_of(Places(root, cell.name)) for cell in CELLS]


def test_all_cells_are_run_and_finished_ones_never_again(tmp_path, capfd):
    names = [cell.name for cell in CELLS]
    assert run_all(CELLS, tmp_path, shell(finish(tmp_path)), parallel=2, retry=False)
    assert started(tmp_path) == names and states(tmp_path) == ["complete"] * 4
    assert run_all(CELLS, tmp_path, shell(finish(tmp_path)), parallel=2, retry=True)
    assert started(tmp_path) == names
    assert "4 of 4 cells are complete already" in capfd.readouterr().err


def test_as_many_run_at_a_time_as_asked(tmp_path):
    script = f"touch {tmp_path}/on.$1; ls {tmp_path} | grep -c ^on >> {tmp_path}/counts; sleep 0.4"
    script += f"; rm {tmp_path}/on.$1; {finish(tmp_path)}"
    assert run_all(CELLS, tmp_path, shell(script), parallel=2, retry=False)
    assert max(map(int, (tmp_path / "counts").read_text().split())) == 2


def test_a_failed_cell_is_reported_left_alone_and_retried_when_asked(tmp_path, capfd):
    record = f'mkdir -p {tmp_path}/logs; echo "no such corpus" > {tmp_path}/logs/$1.failed; exit 1'
    script = f'if [ "$1" = seed=2 ]; then {record}; fi; {finish(tmp_path)}'
    assert not run_all(CELLS, tmp_path, shell(script), parallel=2, retry=False)
    assert "seed=2: failed: no such corpus" in capfd.readouterr().err
    assert states(tmp_path) == ["complete", "complete", "failed", "complete"]

    healthy = shell(finish(tmp_path))
    assert not run_all(CELLS, tmp_path, healthy, parallel=2, retry=False)
    assert "--retry tries it again" in capfd.readouterr().err
    assert started(tmp_path) == ["seed=0", "seed=1", "seed=3"]
    assert run_all(CELLS, tmp_path, healthy, parallel=2, retry=True)
    assert started(tmp_path) == ["seed=0", "seed=1", "seed=2", "seed=3"]


def test_a_cell_that_was_killed_just_continues_next_time(tmp_path, capfd):
    script = f'[ "$1" = seed=1 ] && kill -9 $$; {finish(tmp_path)}'
    assert not run_all(CELLS, tmp_path, shell(script), parallel=1, retry=False)
    assert "killed by SIGKILL; run the sweep again" in capfd.readouterr().err
    assert run_all(CELLS, tmp_path, shell(finish(tmp_path)), parallel=1, retry=False)


def test_what_a_cell_prints_is_in_its_log_one_attempt_after_the_other(tmp_path):
    for word in ("first", "second"):
        run_all(CELLS[:1], tmp_path, shell(f"echo {word}; echo error >&2"), parallel=1, retry=False)
    assert Places(tmp_path, "seed=0").log.read_text() == "first\nerror\nsecond\nerror\n"


def test_each_process_gets_its_share_of_the_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    script = f'sleep 0.2; echo "$CUDA_VISIBLE_DEVICES" >> {tmp_path}/gpus; {finish(tmp_path)}'
    assert run_all(CELLS, tmp_path, shell(script), parallel=2, retry=False)
    assert sorted((tmp_path / "gpus").read_text().split()) == ["4,5", "4,5", "6,7", "6,7"]
    with pytest.raises(UserError, match=r"--parallel=3 .* must divide the 4 GPUs"):
        run_all(CELLS, tmp_path / "other", shell("true"), parallel=3, retry=False)


def test_stopping_the_sweep_stops_what_it_started(tmp_path):
    program = f"""
from pathlib import Path
from bottleneck.config import base
from bottleneck.sweep.cells import expand
from bottleneck.sweep.runner import run_all
cells = expand(base().to_dict(), [{{"seed": 0}}, {{"seed": 1}}])
script = "echo $$ >> {tmp_path}/pids; exec sleep 3600"
run_all(cells, Path("{tmp_path}"), lambda _: ["sh", "-c", script], parallel=2, retry=False)
"""
    sweep = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    pids = tmp_path / "pids"
    deadline = time.monotonic() + HANGING
    while not pids.exists() or len(pids.read_text().split()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    sweep.send_signal(signal.SIGTERM)
    assert sweep.wait(timeout=HANGING) != 0
    for pid in map(int, pids.read_text().split()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_cell_is_trained_by_one_process_at_a_time(tmp_path, capfd):
    places = Places(tmp_path, "seed=0")
    places.lock.parent.mkdir()
    holder = subprocess.Popen(
        ["flock", str(places.lock), "sh", "-c", "echo held; sleep 0.5"],  # noqa: S607
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    assert state_of(places) == "running"
    with alone(places):
        assert holder.wait(timeout=HANGING) == 0  # the block was not entered before
        with places.lock.open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    holder.stdout.close()
    assert "seed=0: waiting for another process, which trains it" in capfd.readouterr().err
    assert state_of(places) == "not begun"


def test_an_error_is_recorded_until_the_next_attempt(tmp_path):
    places = Places(tmp_path, "seed=0")
    places.failure.parent.mkdir()
    with pytest.raises(FileNotFoundError), failure_recorded(places):
        raise FileNotFoundError("no\nfile")
    assert places.failure.read_text() == "FileNotFoundError: no file\n"
    with failure_recorded(places):
        assert not places.failure.exists()
    assert state_of(places) == "not begun"


def test_status_shows_how_far_each_cell_is(tmp_path):
    places = [Places(tmp_path, cell.name) for cell in CELLS]
    for name, steps in (("seed=0", 1000), ("seed=1", 30)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").touch()
        lines = [
            {"step": steps - 10, "split": "eval", "loss": 4.5678},
            {"step": steps, "split": "train", "loss": 4.0, "tokens_per_second": 12345.6},
        ]
        torn = '{"step": 9999, "split": "tr'
        (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines) + torn)
    (tmp_path / "seed=0" / "COMPLETE").touch()
    places[2].failure.parent.mkdir()
    places[2].failure.write_text("no such corpus\n")
    output = io.StringIO()
    watch(CELLS, tmp_path, Console(file=output, width=100))  # no terminal: once
    lines = output.getvalue().splitlines()
    assert lines[1].split() == ["0", "seed=0", "complete", "1,000/1,000", "4.5678", "12,346"]
    assert lines[2].split() == ["1", "seed=1", "begun", "30/1,000", "4.5678", "12,346"]
    assert lines[3].split() == ["2", "seed=2", "failed", "0/1,000"]
    assert lines[4].split() == ["3", "seed=3", "not", "begun", "0/1,000"]
    assert status_table(CELLS, tmp_path).caption == "1 complete, 1 begun, 1 failed, 1 not begun"


def test_status_on_a_terminal_ends_when_nothing_is_left_to_wait_for(tmp_path):
    for cell in CELLS:
        (tmp_path / cell.name).mkdir()
        (tmp_path / cell.name / "COMPLETE").touch()
    output = io.StringIO()
    watch(CELLS, tmp_path, Console(file=output, width=100, force_terminal=True))
    assert "4 complete" in output.getvalue()
