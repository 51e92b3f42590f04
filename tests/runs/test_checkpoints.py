"""What a checkpoint holds is what was saved, or it is not used, whichever bit of it has flipped."""

import dataclasses
import json
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bottleneck.config import CheckpointConfig
from bottleneck.errors import UserError
from bottleneck.runs import checkpoints as checkpoint
from bottleneck.runs import seals
from bottleneck.runs.checkpoints import Checkpointer
from bottleneck.runs.folder import saved_steps
from bottleneck.storage import checksums, json_files


def state(step):
    values = np.random.default_rng(step).standard_normal((6, 5)).astype(np.float32)
    return {"rows": jnp.asarray(values)}, {"count": jnp.int32(step), "mu": jnp.asarray(-values)}


ABSTRACT = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state(0)
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    with Checkpointer(folder, CheckpointConfig()) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, *state(step))
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def restored(folder):
    """The step that is gone on from, its state checked to be what was saved."""
    with Checkpointer(folder, CheckpointConfig()) as checkpointer:
        step = checkpointer.latest_step()
        found = checkpointer.restore(step, ABSTRACT)
    for ours, theirs in zip(*map(jax.tree.leaves, (found, state(step))), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    return step


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        (CheckpointConfig(keep_last=1), [9]),
        (CheckpointConfig(keep_last=3), [7, 8, 9]),
        (CheckpointConfig(keep_last=1, keep_every=4), [0, 4, 8, 9]),
        (CheckpointConfig(keep_last=1, steps=(0, 3, 7)), [0, 3, 7, 9]),
        (CheckpointConfig(keep_last=2, keep_every=3, steps=(1,)), [0, 1, 3, 6, 8, 9]),
    ],
)
def test_of_ten_steps_those_stay_that_the_config_names(tmp_path, config, kept):
    with Checkpointer(tmp_path / "checkpoints", config) as checkpointer:
        for step in range(10):
            checkpointer.save(step, *state(step))
    assert saved_steps(tmp_path / "checkpoints") == kept


def test_a_step_that_is_saved_already_is_left_as_it_is(copy):
    with Checkpointer(copy, CheckpointConfig()) as checkpointer:
        checkpointer.save(2, *state(3))
        checkpointer.wait()
    assert restored(copy) == 2


def test_the_parts_of_several_processes_are_all_files_of_an_item_once(saved, monkeypatch):
    item, read = saved / "2" / "params", []
    info = checksums.info_of_file
    monkeypatch.setattr(checksums, "info_of_file", lambda path: read.append(path) or info(path))
    for part in range(3):
        before = len(read)
        assert seals.damage(item, part, 3) is None
        assert len(read) > before
    assert sorted(read) == [
        path for path in files(item) if str(path.relative_to(item)) in named(item)
    ]


def named(item):
    """The files that the seal of an item names."""
    return set(json.loads((item / seals.SEAL).read_text())["files"])


def test_every_file_of_an_item_is_sealed(saved):
    for item in ("params", "opt_state", "meta"):
        folder = saved / "2" / item
        named = set(json.loads((folder / seals.SEAL).read_text())["files"])
        there = {str(p.relative_to(folder)) for p in files(folder)} - {seals.SEAL}
        # orbax puts its mark of success beside what it has committed.
        assert there - named <= {"commit_success.txt"} and named <= there


def test_a_flipped_bit_anywhere_gives_what_was_saved_or_is_found_out(saved, tmp_path, capsys):
    rng = np.random.default_rng(0)
    found_out = 0
    for number, path in enumerate(files(saved / "2")):
        folder = shutil.copytree(saved, tmp_path / str(number) / "checkpoints")
        target = folder / path.relative_to(saved)
        content = bytearray(path.read_bytes())
        if not content:
            continue
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        target.write_bytes(content)
        step = restored(folder)
        is_sealed = target.parent != folder / "2" and target.name != "commit_success.txt"
        assert (step == 1) == is_sealed, target
        found_out += step == 1
    assert found_out > 10
    assert "damaged and is not used" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["truncated", "deleted", "emptied"])
def test_a_file_that_is_not_whole_is_found_out(saved, tmp_path, what):
    for number, path in enumerate(files(saved / "2")):
        if path.parent == saved / "2" or path.name in ("commit_success.txt", seals.SEAL):
            continue
        folder = shutil.copytree(saved, tmp_path / str(number) / "checkpoints")
        target = folder / path.relative_to(saved)
        content = path.read_bytes()
        target.write_bytes(content[: len(content) // 2] if what == "truncated" else b"")
        if what == "deleted":
            target.unlink()
        if content:
            assert restored(folder) == 1


@pytest.mark.parametrize("item", checkpoint.ITEMS)
def test_a_checkpoint_without_one_of_its_seals_is_not_used(copy, item):
    (copy / "2" / item / seals.SEAL).unlink()
    assert restored(copy) == 1


@pytest.mark.parametrize("name", ["../../../secret", "/SECRET", "a/../../../../secret", ".", ""])
def test_a_seal_that_names_files_outside_of_its_folder_is_not_followed(copy, name, monkeypatch):
    secret = copy.parent / "secret"
    secret.write_text("of another")
    name = name.replace("/SECRET", str(secret))
    reseal(copy / "2" / "meta", {name: dataclasses.asdict(checksums.info_of_file(secret))})
    read = []
    with monkeypatch.context() as patch:
        patch.setattr(checksums, "info_of_file", read.append)
        problem = seals.damage(copy / "2" / "meta")
    assert f"seal.json cannot be read: it names {name!r}, which is not in its folder" in problem
    assert read == []
    assert restored(copy) == 1


@pytest.mark.parametrize(
    "files",
    [[], "a", {"_METADATA": None}, {"_METADATA": {"bytes": "many", "sha256": None}}, {"a": {}}],
)
def test_a_seal_of_another_form_is_damage_and_not_an_error(copy, files):
    reseal(copy / "2" / "meta", files)
    assert "meta/seal.json cannot be read" in seals.damage(copy / "2" / "meta")


def reseal(item, files):
    """Gives an item a seal that agrees with itself."""
    json_files.write(item / seals.SEAL, {"files": files})


@pytest.mark.parametrize("name", ["007", "٣", "²", "3_", "+3"])
def test_a_folder_that_is_no_number_as_we_write_it_is_no_step(copy, name):
    shutil.copytree(copy / "2", copy / name)
    assert saved_steps(copy) == [1, 2]
    assert restored(copy) == 2


def test_a_missing_item_is_found_out(copy):
    shutil.rmtree(copy / "2" / "opt_state")
    assert restored(copy) == 1
    assert saved_steps(copy) == [1]
    assert (copy.parent / "damaged" / "checkpoint-2" / "params").is_dir()


def test_damage_twice_at_one_step_loses_neither(copy):
    for _ in range(2):
        (copy / "2" / "params" / "_METADATA").write_bytes(b"")
        assert restored(copy) == 1
        with Checkpointer(copy, CheckpointConfig()) as checkpointer:
            checkpointer.save(2, *state(2))
    aside = copy.parent / "damaged"
    assert sorted(path.name for path in aside.iterdir()) == ["checkpoint-2", "checkpoint-2.1"]


def test_where_none_is_whole_nothing_is_moved(copy):
    for step in (1, 2):
        (copy / str(step) / "params" / "_METADATA").write_bytes(b"")
    with pytest.raises(UserError, match=r"no checkpoint in .* is intact \(step 2: .*step 1: "):
        Checkpointer(copy, CheckpointConfig())
    assert saved_steps(copy) == [1, 2]


@pytest.mark.parametrize(
    "text",
    [
        "RESOURCE_EXHAUSTED: Failed to write 308 bytes to file 11: Disk quota exceeded "
        "[os_error_code='122']",
        "RESOURCE_EXHAUSTED: Failed to write: [OS error 122: EDQUOT Disk quota exceeded]",
    ],
)
def test_an_error_of_the_store_below_orbax_is_one_line(copy, monkeypatch, text):
    with Checkpointer(copy, CheckpointConfig()) as checkpointer:

        def fails(*_, **__):
            raise ValueError(text)

        monkeypatch.setattr(checkpointer._manager, "save", fails)
        with pytest.raises(UserError, match="checkpoints: Disk quota exceeded; it takes 244 bytes"):
            checkpointer.save(3, *state(3))


def test_a_save_without_room_says_how_much_it_takes(copy, monkeypatch):
    monkeypatch.setattr("bottleneck.runs.checkpoints.free_bytes", lambda path: 100)
    with (
        Checkpointer(copy, CheckpointConfig()) as checkpointer,
        pytest.raises(UserError, match="No space left on device; it takes 244 bytes"),
    ):
        checkpointer.save(3, *state(3))
    assert restored(copy) == 2


def test_what_a_failed_save_leaves_behind_is_not_printed(monkeypatch):
    """TensorStore's writes tell a loop that is closed; other such errors are printed as ever."""
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    checkpoint._print_no_tracebacks.cache_clear()
    checkpoint._print_no_tracebacks()
    for message in ("Event loop is closed", "another error"):
        sys.unraisablehook(types.SimpleNamespace(exc_value=RuntimeError(message)))
    assert [str(each.exc_value) for each in printed] == ["another error"]
    checkpoint._print_no_tracebacks.cache_clear()
