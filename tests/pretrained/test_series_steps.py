"""Which steps of a series are measured, kept, left out and refused; its models are not trained."""

import errno
import json
import os
import shutil

import jax
import numpy as np
import pytest
from made_up_runs import probe_of
from safetensors.numpy import load_file, save_file
from small_runs import write_experiment

from bottleneck import runs
from bottleneck.commands.flags import load_config
from bottleneck.commands.series import main
from bottleneck.data.tokens import prepare
from bottleneck.errors import UserError
from bottleneck.model import transformer
from bottleneck.pretrained.huggingface import save_pretrained
from bottleneck.pretrained.series_audit import left_out_steps
from bottleneck.pretrained.series_source import Release

STEPS = (0, 4, 8, 12, 16)


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    return write_experiment(tmp_path_factory.mktemp("text"), {"train.steps": 16})


@pytest.fixture(scope="module")
def published(config_file):
    """A model in a cache of the hub, each step of which was drawn anew."""
    config = load_config(str(config_file), {})
    folder = config_file.parent / "models--org--tiny"
    (folder / "refs").mkdir(parents=True)
    (folder / "snapshots").mkdir()
    draw = jax.jit(lambda key: transformer.init_params(config.model, key))
    for step in STEPS:
        save_pretrained(config.model, draw(jax.random.key(step)), snapshot(folder, step))
        shutil.copyfile(
            prepare(config.data).path / "tokenizer.json",
            snapshot(folder, step) / "tokenizer.json",
        )
        (folder / "refs" / f"step{step}").write_text(snapshot(folder, step).name)
    return folder


class Quick:
    """A prober that compiles nothing, and counts what it is asked for."""

    asked = 0

    def __init__(self, *_):
        pass

    def measure(self, params):
        Quick.asked += 1
        return probe_of()


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bottleneck.pretrained.series.Prober", Quick)
        yield


@pytest.fixture
def counted():
    """() → how many steps have been measured in this test."""
    before = Quick.asked
    return lambda: Quick.asked - before


@pytest.fixture(scope="module")
def series(config_file):
    """`python -m bottleneck series`: (source, workdir, more flags) → exit code."""

    def run(source, workdir, *flags):
        return main([str(source), f"--workdir={workdir}", f"--config={config_file}", *flags])

    return run


@pytest.fixture(scope="module")
def measured(published, series, quick):
    workdir = published.parent / "measured"
    assert series(published, workdir) == 0
    return workdir


@pytest.fixture
def copied(published, measured, tmp_path):
    """(workdir of a measured series, its model in a cache of the hub), for a test to change."""
    model, workdir = tmp_path / "models--org--tiny", tmp_path / "measured"
    shutil.copytree(published, model)
    shutil.copytree(measured, workdir)
    # What is measured is the copy from now on.
    for name in ("config.json", "audit.json"):
        text = (workdir / name).read_text().replace(str(published), str(model))
        *lines, _, end = text.splitlines()  # whoever changes a file takes its checksum out
        (workdir / name).write_text("\n".join(lines).removesuffix(",") + end)
    return workdir, model


def probe_times(workdir):
    return {p.name: p.stat().st_mtime_ns for p in (workdir / "probes").glob("[0-9]*.npz")}


def findings(workdir):
    return {int(k): v for k, v in json.loads((workdir / "audit.json").read_text())["steps"].items()}


def snapshot(model, step):
    return model / "snapshots" / f"{step:040x}"


def add_step(model, step, like):
    """A step with the files of another, which may then be changed."""
    shutil.copytree(snapshot(model, like), snapshot(model, step))
    (model / "refs" / f"step{step}").write_text(f"{step:040x}")
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
    assert counted() == 1
    after = probe_times(workdir)
    assert after.keys() - before.keys() == {"00000020.npz"}
    assert {name: after[name] for name in before} == before
    assert runs.load(workdir).series("eval", "step")[0].tolist() == [*STEPS, 20]


def test_of_steps_with_the_same_weights_the_last_is_measured(published, series, counted, tmp_path):
    model, workdir = tmp_path / "steps", tmp_path / "out"
    for name, like in (("step1", 16), ("step2", 4), ("step3", 16), ("ckpt-4", 16)):
        shutil.copytree(snapshot(published, like), model / name)
    assert series(model, workdir) == 0
    assert runs.load(workdir).probe_steps == [2, 4]
    assert counted() == 2
    assert {s: f["same_as"] for s, f in findings(workdir).items()} == {1: 4, 2: None, 3: 4, 4: None}
    assert left_out_steps(workdir) == [1, 3]
    # They are looked at again each time: now one is what it should have been.
    shutil.copytree(snapshot(published, 8), model / "step1", dirs_exist_ok=True)
    assert series(model, workdir) == 0
    assert runs.load(workdir).probe_steps == [1, 2, 4]


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
        ("the snapshot is gone", "is missing, although a revision names it"),
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
    assert counted() == 1
    assert runs.load(workdir).probe_steps == [*STEPS, 20]
    shutil.rmtree(snapshot(model, 24), ignore_errors=True)
    shutil.copytree(snapshot(model, 20), snapshot(model, 24))
    change_last_value(snapshot(model, 24) / "model.safetensors")
    change_last_value(snapshot(model, 4) / "model.safetensors")
    assert findings(workdir)[24]["weights"] is None
    assert series(model, workdir) == 0
    assert findings(workdir)[24]["same_as"] == 12


def test_a_full_disk_is_one_line_and_what_was_measured_stays(
    published, series, counted, tmp_path, monkeypatch
):
    workdir = tmp_path / "out"
    save = np.savez

    def has_room_for_two(*args, **kwargs):
        if counted() > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("numpy.savez", has_room_for_two)
        with pytest.raises(UserError, match=f"cannot write {workdir}: No space left on device"):
            series(published, workdir)
    assert runs.load(workdir).probe_steps == [12, 16]
    assert series(published, workdir) == 0
    assert counted() == 3 + 3
    assert runs.load(workdir).probe_steps == list(STEPS)


def test_an_audit_measures_nothing_and_needs_no_config(published, tmp_path, capsys):
    workdir = tmp_path / "out"
    assert main([str(published), f"--workdir={workdir}", "--audit_only"]) == 0
    assert {path.name for path in workdir.iterdir()} == {".lock", "audit.json"}
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
    assert len({Release(str(folder)).digest() for folder in folders}) == 1
    as_float32[names[0]].flat[-1] += 1e-3
    save_file(as_float32, folders[2] / "model.safetensors")
    assert Release(str(folders[2])).digest() != Release(str(folders[0])).digest()


def test_steps_are_chosen_by_name_or_by_their_distance(published, series, tmp_path):
    assert series(published, tmp_path / "named", "--steps=4,16") == 0
    assert runs.load(tmp_path / "named").probe_steps == [4, 16]
    assert series(published, tmp_path / "every", "--every=8") == 0
    assert runs.load(tmp_path / "every").probe_steps == [0, 8, 16]
    with pytest.raises(UserError, match="has no step 5; it has 5, from 0 to 16"):
        series(published, tmp_path / "none", "--steps=4,5")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["--config.probe.tokens=1024"],
            "holds a run with probe.tokens=512; now probe.tokens=1024",
        ),
        (
            ["--config.train.batch_size=8"],
            "holds a run with train.batch_size=4; now train.batch_size=8",
        ),
        (
            ["--config.data.validation_fraction=0.3"],
            "data.validation_fraction=0.2; now data.validation_fraction=0.3",
        ),
    ],
)
def test_another_config_is_refused_on_the_same_folder(copied, series, changes, message):
    workdir, model = copied
    before = (workdir / "config.json").read_bytes()
    with pytest.raises(UserError, match=message):
        series(model, workdir, *changes)
    assert (workdir / "config.json").read_bytes() == before


def test_folders_of_other_things_are_refused(copied, published, series, tmp_path):
    workdir, _ = copied
    with pytest.raises(
        UserError, match=f"holds a series with source='.*'; now source='{published}'"
    ):
        series(published, workdir)
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
    assert runs.load(tmp_path / "moved").probe_steps == [*STEPS, 20]
