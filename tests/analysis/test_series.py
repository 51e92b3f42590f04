"""A run trained here, its checkpoints published as the hub keeps them, and read as a series."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bottleneck.analysis import series_source
from bottleneck.analysis.report import EXHIBITS, write_report
from bottleneck.analysis.runs import load_run
from bottleneck.analysis.series_audit import left_out_steps
from bottleneck.commands.flags import load_config
from bottleneck.commands.series import main
from bottleneck.data.tokens import prepare
from bottleneck.errors import UserError
from bottleneck.interop.huggingface import save_pretrained
from bottleneck.interop.weight_digest import of_folder
from bottleneck.training.loop import train
from bottleneck.training.probing import ProbeRecord

STEPS = (0, 4, 8, 12, 16)

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
    config.mesh.replica, config.mesh.fsdp = -1, 1  # what compiles soonest
    config.train.steps = 16
    config.train.batch_size = 4
    config.train.sequence_length = 32
    config.probe.every = 4
    config.probe.tokens = 512
    config.checkpoint.every = 4
    config.checkpoint.keep_every = 4
    config.checkpoint.steps = (0,)
    return config
"""

# One device, where the test process poses as four.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder of a run trained here, the file of its config)."""
    folder = tmp_path_factory.mktemp("series")
    source = random.Random(0)
    words = [f"word{i}" for i in range(50)]
    (folder / "text").mkdir()
    for i in range(60):
        (folder / "text" / f"{i}.txt").write_text(" ".join(source.choices(words, k=120)))
    file = folder / "config.py"
    file.write_text(CONFIG.format(text=str(folder / "text"), cache=str(folder / "cache")))
    train(load_config(str(file), {}), folder / "run")
    return folder / "run", file


@pytest.fixture(scope="module")
def published(trained):
    """The folder of a model in a cache of the hub: a ref for each step, that names a snapshot."""
    run = load_run(trained[0])
    folder = trained[0].parent / "models--org--tiny"
    (folder / "refs").mkdir(parents=True)
    (folder / "snapshots").mkdir()
    for step in STEPS:
        snapshot = f"{step:040x}"
        save_pretrained(run.config.model, run.params(step), folder / "snapshots" / snapshot)
        shutil.copyfile(
            prepare(run.config.data).path / "tokenizer.json",
            folder / "snapshots" / snapshot / "tokenizer.json",
        )
        (folder / "refs" / f"step{step}").write_text(snapshot)
    (folder / "refs" / "main").write_text(f"{STEPS[-1]:040x}")
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
    deadline = time.monotonic() + 120
    while not lines.exists() or lines.read_text().count("\n") < 4:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
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
        load = series_source._Released.load

        def watched(checkpoint, mesh):
            self.folders.append(checkpoint.release.path_or_name)
            self.earlier_are_deleted.append(all(leaf.is_deleted() for leaf in self._leaves))
            self.bytes_alive.append(sum(array.nbytes for array in jax.live_arrays()))
            params = load(checkpoint, mesh)
            self._leaves += jax.tree.leaves(params)
            return params

        patch.setattr(series_source._Released, "load", watched)


def probe_times(workdir):
    return {p.name: p.stat().st_mtime_ns for p in (workdir / "probes").glob("[0-9]*.npz")}


def test_a_published_series_gives_the_numbers_of_the_runs_own_probes(trained, measured):
    ours, theirs = load_run(trained[0]), load_run(measured.workdir)
    assert theirs.probe_steps == list(STEPS)
    assert theirs.is_complete
    for split in ("eval", "probe"):
        names = [n for n in ours.split(split).columns if n not in ("step", "split")]
        assert len(names) > (2 if split == "eval" else 40)
        for name in names:
            (expected,), (found,) = ours.series(split, name), theirs.series(split, name)
            np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4, err_msg=name)
    for step in STEPS:
        expected, found = ours.probe(step), theirs.probe(step)
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
    folders = [str(measured_folder(step)) for step in reversed(STEPS) if step not in done]
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
    monkeypatch.setattr("bottleneck.analysis.report.EXHIBITS", shown)
    page = write_report([load_run(measured.workdir)], tmp_path).read_text()
    assert "measured on text" in page
    assert "trained" not in page.partition("</table>")[0].partition("<body>")[2]
    assert {p.stem for p in (tmp_path / "figures").glob("*.png")} == {e.name for e in shown}


def measured_folder(step):
    return f"{step:040x}"


@pytest.fixture
def copied(measured, published, tmp_path):
    """(workdir of the series, its model in a cache of the hub), for a test to change."""
    model = tmp_path / "models--org--tiny"
    shutil.copytree(published, model)
    workdir = tmp_path / "measured"
    shutil.copytree(measured.workdir, workdir)
    # What is measured is the copy from now on.
    for name in ("config.json", "audit.json"):
        text = (workdir / name).read_text().replace(str(published), str(model))
        (workdir / name).write_text(text)
    return workdir, model


@pytest.fixture
def counted(measured, monkeypatch):
    """The steps' losses that were asked for, of a prober that compiles nothing."""
    run = load_run(measured.workdir)
    record = ProbeRecord(
        {"loss": 1.0, "loss_se": 0.1},
        {"singular_entropy": 1.0, "effective_rank": 1.0},
        run.probe(16),
    )
    asked = []

    class Quick:
        def __init__(self, *_):
            pass

        def measure(self, params):
            asked.append(float(jax.tree.leaves(params)[0].sum()))
            return record

    monkeypatch.setattr("bottleneck.analysis.series.Prober", Quick)
    return asked


@pytest.fixture
def series(trained):
    """`python -m bottleneck series`: (source, workdir, more flags) → exit code."""

    def run(source, workdir, *flags):
        return main([str(source), f"--workdir={workdir}", f"--config={trained[1]}", *flags])

    return run


def findings(workdir):
    return {int(k): v for k, v in json.loads((workdir / "audit.json").read_text())["steps"].items()}


def snapshot(model, step):
    return model / "snapshots" / measured_folder(step)


def add_step(model, step, like):
    """A step with the files of another, which may then be changed."""
    shutil.copytree(snapshot(model, like), snapshot(model, step))
    (model / "refs" / f"step{step}").write_text(measured_folder(step))
    return snapshot(model, step) / "model.safetensors"


def change_last_value(weights):
    content = bytearray(weights.read_bytes())
    content[-4] ^= 1
    weights.write_bytes(content)


def test_a_new_step_is_taken_up_and_nothing_else_is_read_again(copied, series, counted):
    workdir, model = copied
    before = probe_times(workdir)
    change_last_value(add_step(model, 20, like=16))
    shutil.rmtree(snapshot(model, 8))  # is measured, so nobody asks for it
    assert series(model, workdir) == 0
    assert len(counted) == 1
    after = probe_times(workdir)
    assert after.keys() - before.keys() == {"00000020.npz"}
    assert {name: after[name] for name in before} == before
    assert load_run(workdir).series("eval", "step")[0].tolist() == [*STEPS, 20]


def test_of_steps_with_the_same_weights_the_last_is_measured(published, series, counted, tmp_path):
    model, workdir = tmp_path / "steps", tmp_path / "out"
    for name, like in (("step1", 16), ("step2", 4), ("step3", 16), ("ckpt-4", 16)):
        shutil.copytree(snapshot(published, like), model / name)
    assert series(model, workdir) == 0
    assert load_run(workdir).probe_steps == [2, 4]
    assert len(counted) == 2
    assert {s: f["same_as"] for s, f in findings(workdir).items()} == {1: 4, 2: None, 3: 4, 4: None}
    assert left_out_steps(workdir) == [1, 3]
    # They are looked at again each time: now one is what it should have been.
    shutil.copytree(snapshot(published, 8), model / "step1", dirs_exist_ok=True)
    assert series(model, workdir) == 0
    assert load_run(workdir).probe_steps == [1, 2, 4]


def damage(model, step, how):
    weights = snapshot(model, step) / "model.safetensors"
    tensors = load_file(weights)
    if how == "a tensor is missing":
        del tensors["gpt_neox.final_layer_norm.bias"]
        save_file(tensors, weights)
    elif how == "a value is not a number":
        tensors["embed_out.weight"][3, 5] = np.nan
        save_file(tensors, weights)
    elif how == "the file is cut":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif how == "it is another model":
        config = json.loads((weights.parent / "config.json").read_text())
        (weights.parent / "config.json").write_text(json.dumps(config | {"rotary_pct": 0.5}))
    else:
        assert how == "the snapshot is gone"
        shutil.rmtree(weights.parent)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("a tensor is missing", "lacks tensor final_layer_norm.bias, going by its config.json"),
        ("a value is not a number", "embed_out.weight has values that are not finite"),
        ("the file is cut", "model.safetensors is not a whole safetensors file"),
        ("it is another model", "it is another model: rotary_fraction is 0.5, not 0.25"),
        ("the snapshot is gone", "is not there, though a revision names it"),
    ],
)
def test_a_step_that_cannot_be_read_is_a_line_and_stops_no_other(
    copied, series, counted, how, message, capsys
):
    workdir, model = copied
    for step in (20, 24):
        change_last_value(add_step(model, step, like=12 if step == 20 else 16))
    damage(model, 24, how)
    assert series(model, workdir) == 1
    assert message in findings(workdir)[24]["error"]
    assert "\n" not in findings(workdir)[24]["error"]
    assert "1 cannot be read" in capsys.readouterr().out
    assert len(counted) == 1
    assert load_run(workdir).probe_steps == [*STEPS, 20]
    shutil.rmtree(snapshot(model, 24), ignore_errors=True)
    shutil.copytree(snapshot(model, 20), snapshot(model, 24))
    change_last_value(snapshot(model, 24) / "model.safetensors")
    change_last_value(snapshot(model, 4) / "model.safetensors")
    assert findings(workdir)[24]["weights"] is None
    assert series(model, workdir) == 0
    assert findings(workdir)[24]["same_as"] == 12


def test_an_audit_measures_nothing_and_needs_no_config(published, tmp_path, capsys):
    workdir = tmp_path / "out"
    assert main([str(published), f"--workdir={workdir}", "--audit_only"]) == 0
    assert [path.name for path in workdir.iterdir()] == ["audit.json"]
    hashes = {finding["weights"] for finding in findings(workdir).values()}
    assert len(hashes) == 5 and all(len(one) == 64 for one in hashes)
    assert "5 steps: 5 with weights of their own" in capsys.readouterr().out


def test_the_hash_does_not_depend_on_files_their_order_and_type(published, tmp_path):
    whole = load_file(snapshot(published, 16) / "model.safetensors")
    rounded = {name: values.astype(np.float16) for name, values in whole.items()}
    names = sorted(rounded)
    folders = [tmp_path / name for name in ("whole", "sharded", "float32")]
    for folder in folders:
        folder.mkdir()
        shutil.copyfile(snapshot(published, 16) / "config.json", folder / "config.json")
    save_file(rounded, folders[0] / "model.safetensors")
    shards = {"b.safetensors": names[:5], "a.safetensors": names[5:]}
    for file, of_shard in shards.items():
        save_file({name: rounded[name] for name in of_shard}, folders[1] / file)
    index = {"weight_map": {name: file for file, some in shards.items() for name in some}}
    (folders[1] / "model.safetensors.index.json").write_text(json.dumps(index))
    as_float32 = {name: values.astype(np.float32) for name, values in rounded.items()}
    buffer = {"gpt_neox.layers.0.attention.masked_bias": np.float32([-np.inf])}
    save_file(as_float32 | buffer, folders[2] / "model.safetensors")
    assert len({of_folder(folder) for folder in folders}) == 1
    as_float32[names[0]].flat[-1] += 1e-3
    save_file(as_float32, folders[2] / "model.safetensors")
    assert of_folder(folders[2]) != of_folder(folders[0])


def test_steps_are_chosen_by_name_or_by_their_distance(
    trained, published, counted, series, tmp_path
):
    assert series(published, tmp_path / "named", "--steps=4,16") == 0
    assert load_run(tmp_path / "named").probe_steps == [4, 16]
    assert series(published, tmp_path / "every", "--every=8") == 0
    assert load_run(tmp_path / "every").probe_steps == [0, 8, 16]
    with pytest.raises(UserError, match="has no step 5; it has 5, from 0 to 16"):
        series(published, tmp_path / "none", "--steps=4,5")
    assert not (tmp_path / "none").exists()


def test_a_run_folder_is_a_series_too(trained, measured, series, counted, tmp_path):
    assert series(trained[0], tmp_path / "out", "--steps=8,16") == 0
    run = load_run(tmp_path / "out")
    assert run.probe_steps == [8, 16]
    # Its tokenizer is made anew, of the same text.
    assert run.corpus == load_run(trained[0]).corpus
    with pytest.raises(
        UserError, match="made its tokenizer of its own corpus, and this is another"
    ):
        series(trained[0], tmp_path / "other", "--config.data.heldout_fraction=0.3")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--config.probe.tokens=1024"], "another config .*probe.tokens: 512 → 1024"),
        (["--config.train.batch_size=8"], "another config .*train.batch_size: 4 → 8"),
        (["--config.data.heldout_fraction=0.3"], "data.heldout_fraction: 0.2 → 0.3"),
    ],
)
def test_another_config_is_refused_on_the_same_folder(copied, series, changes, message):
    workdir, model = copied
    before = (workdir / "config.json").read_bytes()
    with pytest.raises(UserError, match=message):
        series(model, workdir, *changes)
    assert (workdir / "config.json").read_bytes() == before


def test_folders_of_other_things_are_refused(trained, copied, published, series, tmp_path):
    workdir, _ = copied
    with pytest.raises(UserError, match=f"holds the series of .*, not of {published}"):
        series(published, workdir)
    with pytest.raises(UserError, match="holds a run that is no series"):
        series(published, trained[0])
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is not empty and holds no series"):
        series(published, tmp_path / "thesis")


def test_a_series_without_a_tokenizer_says_how_to_name_one(copied, series, tmp_path):
    _, model = copied
    for step in STEPS:
        (snapshot(model, step) / "tokenizer.json").unlink()
    with pytest.raises(
        UserError, match=r"has no tokenizer\.json; name its tokenizer with --config"
    ):
        series(model, tmp_path / "out")


def test_a_moved_series_goes_on(copied, series, counted, tmp_path):
    workdir, model = copied
    change_last_value(add_step(model, 20, like=16))
    workdir.rename(tmp_path / "moved")
    assert series(model, tmp_path / "moved") == 0
    assert load_run(tmp_path / "moved").probe_steps == [*STEPS, 20]
