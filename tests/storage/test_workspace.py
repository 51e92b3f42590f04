"""The protocol of a folder: who may fill it, what it holds, and when it is finished."""

import errno
import re
import signal
import subprocess
import sys

import pytest

from bottleneck.errors import UserError
from bottleneck.storage import json_files
from bottleneck.storage.workspace import Workspace, check_unused, claimed, is_unused

PLAN = {"ranks": (1, 2), "seed": 0}

# Opens a workspace, says so, and does what its second argument says.
WORKER = """
import os, signal, sys, time
from pathlib import Path
from bottleneck.storage import json_files
from bottleneck.storage.workspace import Workspace

if sys.argv[2] == "dies before the plan":
    json_files.write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
with Workspace(Path(sys.argv[1]), {"ranks": (1, 2), "seed": 0}, "a study").opened() as facts:
    facts["loss"] = 2.5
    print("opened", flush=True)
    sys.stdin.read()
"""


def workspace(folder, plan=PLAN, **fields):
    return Workspace(folder, plan, "a study", **fields)


def worker(folder, what="waits"):
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder), what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_another_plan_is_refused_and_the_fields_that_differ_are_named(tmp_path):
    with workspace(tmp_path).opened():
        pass
    workspace(tmp_path).check()
    other = workspace(tmp_path, {"ranks": (1, 4), "seed": 0})
    line = (
        f"--output={tmp_path} holds a study with ranks=(1, 2); now ranks=(1, 4): choose a new "
        "folder, or the old values"
    )
    for begin in (other.check, other.opened().__enter__):
        with pytest.raises(UserError) as refusal:
            begin()
        assert str(refusal.value) == line
    assert json_files.read(tmp_path / "plan.json", "") == {"ranks": [1, 2], "seed": 0}


def test_a_field_that_only_one_of_two_plans_has_is_named(tmp_path):
    with workspace(tmp_path, flag=None).opened():
        pass
    with pytest.raises(UserError, match=rf"^{tmp_path} .* seed=0, n=None; now seed=None, n=3: "):
        workspace(tmp_path, {"ranks": (1, 2), "n": 3}, flag=None).check()


def test_a_free_field_may_change_and_the_plan_on_disk_stays(tmp_path):
    with workspace(tmp_path).opened():
        pass
    with workspace(tmp_path, PLAN | {"seed": 5}, free=["seed"]).opened():
        pass
    assert json_files.read(tmp_path / "plan.json", "")["seed"] == 0


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path):
    with worker(tmp_path / "study") as first:
        assert first.stdout.readline() == b"opened\n"
        line = rf"^--output={tmp_path}/study is in use by process {first.pid} on .*; stop that one"
        with pytest.raises(UserError, match=line), workspace(tmp_path / "study").opened():
            pass
        first.kill()
    with workspace(tmp_path / "study").opened() as facts:
        assert facts == {}


def test_a_kill_before_the_plan_leaves_the_folder_unused(tmp_path):
    with worker(tmp_path / "study", "dies before the plan") as killed:
        assert killed.wait() == -signal.SIGKILL
    assert names(tmp_path / "study") == [".lock"] and is_unused(tmp_path / "study")
    (tmp_path / "study" / ".plan.json.draft").write_text('{"ra')
    with workspace(tmp_path / "study", {"ranks": (9,)}).opened():
        pass


def test_a_kill_in_the_block_leaves_no_done_mark_and_the_same_plan_resumes(tmp_path):
    with worker(tmp_path / "study") as killed:
        assert killed.stdout.readline() == b"opened\n"
        killed.kill()
    assert names(tmp_path / "study") == [".lock", "plan.json"]
    with workspace(tmp_path / "study").opened() as facts:
        assert facts == {}


def test_the_done_mark_is_written_when_the_block_ends_and_not_again(tmp_path):
    done = tmp_path / "COMPLETE"
    with workspace(tmp_path).opened() as facts:
        facts["loss"] = 2.5
        assert not done.exists()
    content = done.read_bytes()
    with workspace(tmp_path).opened() as facts:
        assert facts == {"loss": 2.5}
        facts["loss"] = 9.0
    assert done.read_bytes() == content


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt(), UserError("no")])
def test_a_block_that_raises_leaves_no_done_mark(tmp_path, error):
    with pytest.raises(type(error)), workspace(tmp_path).opened() as facts:
        facts["loss"] = 2.5
        raise error
    assert names(tmp_path) == [".lock", "plan.json"]


def test_a_block_without_facts_leaves_the_folder_open_to_more(tmp_path):
    for _ in range(2):
        with workspace(tmp_path).opened() as facts:
            assert facts == {}
    assert names(tmp_path) == [".lock", "plan.json"]


@pytest.mark.parametrize("name", ["plan.json", "COMPLETE"])
def test_a_damaged_file_is_named_with_the_remedy(tmp_path, name):
    with workspace(tmp_path).opened() as facts:
        facts["loss"] = 2.5
    path = tmp_path / name
    path.write_bytes(path.read_bytes().replace(b"2", b"3", 1))
    line = rf"{name} is damaged: .*; delete the folder, and the same command makes it again$"
    with pytest.raises(UserError, match=line), workspace(tmp_path).opened():
        pass
    with pytest.raises(UserError, match=r"; ask for it$"):
        workspace(tmp_path, remedy="ask for it").opened().__enter__()


def test_a_disk_that_fills_up_is_one_line_that_says_what_is_kept(tmp_path):
    with pytest.raises(UserError) as refusal, workspace(tmp_path).opened():
        raise OSError(errno.ENOSPC, "No space left on device")
    assert re.fullmatch(
        rf"cannot write {tmp_path}: No space left on device; [\d,]+ are free; what is written "
        "stays, and the same command resumes from there",
        str(refusal.value),
    )


def test_a_folder_of_other_things_and_a_file_are_refused_untouched(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="thesis is not empty and holds no study; choose a new"):
        workspace(tmp_path / "thesis").check()
    with pytest.raises(UserError), workspace(tmp_path / "thesis").opened():
        pass
    assert set(names(tmp_path / "thesis")) - {".lock"} == {"thesis.tex"}
    with pytest.raises(UserError, match=r"thesis\.tex is a file; choose a new folder"):
        workspace(tmp_path / "thesis" / "thesis.tex").check()
    check_unused(tmp_path / "thesis", "a study", known=["thesis.tex"])


def test_a_new_folder_that_is_left_empty_is_removed_and_one_of_the_user_stays(tmp_path):
    with pytest.raises(ValueError), claimed(tmp_path / "a" / "new"):
        raise ValueError
    assert not (tmp_path / "a" / "new").exists()
    (tmp_path / "old").mkdir()
    with claimed(tmp_path / "old"):
        pass
    assert names(tmp_path / "old") == [".lock"]
