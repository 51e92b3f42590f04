"""A run trained here, its checkpoints published as the hub keeps them, and read as a series."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from processes import await_moment
from small_runs import write_experiment

from bottleneck import runs
from bottleneck.commands.flags import load_config
from bottleneck.commands.series import main
from bottleneck.data.tokens import prepare
from bottleneck.errors import UserError
from bottleneck.pretrained import series_source
from bottleneck.pretrained.huggingface import save_pretrained
from bottleneck.report.exhibits import EXHIBITS
from bottleneck.report.page import write_report
from bottleneck.training.loop import train

STEPS = (0, 4, 8, 12, 16)

SETTINGS = {
    "compute.mesh.replica": -1,  # with fsdp at 1, what compiles soonest
    "compute.mesh.fsdp": 1,
    "train.steps": 16,
    "probe.every": 4,
    "checkpoint.every": 4,
    "checkpoint.keep_every": 4,
    "checkpoint.steps": (0,),
}

# One device, where this process poses as four.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder of a run trained here, the file of its config)."""
    folder = tmp_path_factory.mktemp("series")
    file = write_experiment(folder, SETTINGS)
    train(load_config(str(file), {}), folder / "run")
    return folder / "run", file


@pytest.fixture(scope="module")
def published(trained):
    """The folder of a model in a cache of the hub: a ref for each step, that names a snapshot."""
    run = runs.load(trained[0])
    folder = trained[0].parent / "models--org--tiny"
    (folder / "refs").mkdir(parents=True)
    (folder / "snapshots").mkdir()
    for step in STEPS:
        snapshot = snapshot_name(step)
        save_pretrained(run.config.model, run.params(step), folder / "snapshots" / snapshot)
        shutil.copyfile(
            prepare(run.config.data).path / "tokenizer.json",
            folder / "snapshots" / snapshot / "tokenizer.json",
        )
        (folder / "refs" / f"step{step}").write_text(snapshot)
    (folder / "refs" / "main").write_text(snapshot_name(STEPS[-1]))
    return folder


@pytest.fixture(scope="module")
def measured(trained, published):
    """A series that was killed in the middle on one device, and continued on four: see `Measured`.

    Between the two, a piece of a line is left at the end of its metrics.
    """
    workdir = trained[0].parent / "measured"
    arguments = ["series", str(published), f"--workdir={workdir}", f"--config={trained[1]}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "bottleneck", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=ENVIRONMENT,
    )
    lines = workdir / "metrics.jsonl"
    await_moment(lambda: lines.exists() and lines.read_text().count("\n") >= 4, process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    found = lines.read_text()
    found = found[: found.rindex("\n") + 1]
    before = probe_times(workdir)
    lines.write_text(found + '{"step": 4, "split": "ev')
    with pytest.MonkeyPatch.context() as patch:
        loads = Loads(patch)
        assert main(arguments[1:]) == 0
    return Measured(workdir, found, before, loads)


class Measured(NamedTuple):
    workdir: Path
    lines_before: str  # whole ones, when it was killed
    probes_before: dict  # name → time
    loads: object  # those after the kill


class Loads:
    """Watches what is loaded, and what is still in memory then."""

    def __init__(self, patch):
        self.folders, self.bytes_alive, self.earlier_are_deleted = [], [], []
        self._leaves = []
        load = series_source.Release.load

        def watched(checkpoint, mesh):
            self.folders.append(checkpoint.path_or_name)
            self.earlier_are_deleted.append(all(leaf.is_deleted() for leaf in self._leaves))
            self.bytes_alive.append(sum(array.nbytes for array in jax.live_arrays()))
            params = load(checkpoint, mesh)
            self._leaves += jax.tree.leaves(params)
            return params

        patch.setattr(series_source.Release, "load", watched)


def snapshot_name(step):
    return f"{step:040x}"


def probe_times(workdir):
    return {p.name: p.stat().st_mtime_ns for p in (workdir / "probes").glob("[0-9]*.npz")}


def test_a_published_series_gives_the_numbers_of_the_runs_own_probes(trained, measured):
    ours, theirs = runs.load(trained[0]), runs.load(measured.workdir)
    assert theirs.probe_steps == list(STEPS)
    assert theirs.is_complete
    for split in ("eval", "probe"):
        names = [n for n in ours.split(split).columns if n not in ("step", "split")]
        assert len(names) > (2 if split == "eval" else 40)
        for name in names:
            (expected,), (found,) = ours.series(split, name), theirs.series(split, name)
            np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4, err_msg=name)
    for step in STEPS:
        expected, found = ours.probe(step).arrays(), theirs.probe(step).arrays()
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            size = max(np.abs(values).max(), 1)
            np.testing.assert_allclose(
                *(found[name], values), atol=1e-4 * size, rtol=1e-4, err_msg=name
            )


def test_what_was_measured_before_a_kill_is_kept_and_not_measured_again(measured):
    written = [json.loads(line)["step"] for line in measured.lines_before.splitlines()]
    done = {step for step in written if written.count(step) == 2}
    assert done >= {16, 12}
    folders = [str(snapshot_name(step)) for step in reversed(STEPS) if step not in done]
    assert [Path(folder).name for folder in measured.loads.folders] == folders
    now = probe_times(measured.workdir)
    for step in done:
        assert now[f"{step:08}.npz"] == measured.probes_before[f"{step:08}.npz"]
    lines = (measured.workdir / "metrics.jsonl").read_text()
    assert lines.startswith(measured.lines_before)
    rows = [json.loads(line) for line in lines.splitlines()]
    assert {(row["step"], row["split"]) for row in rows} == {
        (step, split) for step in STEPS for split in ("eval", "probe")
    }


def test_one_step_is_in_memory_at_a_time(measured):
    assert len(measured.loads.folders) >= 2
    assert all(measured.loads.earlier_are_deleted)
    # Of the second step on; with the first, constants of the programs come into memory.
    assert len(set(measured.loads.bytes_alive[1:])) == 1


def test_the_report_reads_a_series_as_a_run(measured, tmp_path, monkeypatch):
    shown = [e for e in EXHIBITS if e.name in ("loss", "spectrum", "anisotropy")]
    monkeypatch.setattr("bottleneck.report.page.EXHIBITS", shown)
    page = write_report([runs.load(measured.workdir)], tmp_path).read_text()
    assert "measured on text" in page
    assert "trained" not in page.partition("</table>")[0].partition("<body>")[2]
    assert {p.stem for p in (tmp_path / "figures").glob("*.png")} == {e.name for e in shown}


def test_a_run_folder_is_a_series_too(trained, tmp_path, monkeypatch):
    ours = runs.load(trained[0])

    class Quick:
        def __init__(self, *_):
            pass

        def measure(self, params):
            return ours.probe(16)

    monkeypatch.setattr("bottleneck.pretrained.series.Prober", Quick)
    flags = [str(trained[0]), f"--config={trained[1]}"]
    assert main([*flags, f"--workdir={tmp_path / 'out'}", "--steps=8,16"]) == 0
    run = runs.load(tmp_path / "out")
    assert run.probe_steps == [8, 16]
    # Its tokenizer is made anew, of the same text.
    assert run.corpus == ours.corpus
    other = [f"--workdir={tmp_path / 'other'}", "--config.data.validation_fraction=0.3"]
    with pytest.raises(UserError, match="trained its tokenizer on another corpus"):
        main([*flags, *other])
    with pytest.raises(UserError, match="holds a run that is not a series"):
        main([*flags, f"--workdir={trained[0]}"])
