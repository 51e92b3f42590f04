"""Files that are there whole or not at all, and locks that die with their process."""

import errno
import subprocess
import sys

import pytest

from bottleneck.errors import UserError
from bottleneck.storage.folders import locked, write_whole, writing

HOLDER = """
import sys
from pathlib import Path
from bottleneck.storage.folders import locked
with locked(Path(sys.argv[1]), lambda holder: None):
    print("held", flush=True)
    sys.stdin.read()
"""


def refuse(holder):
    raise UserError(f"in use by {holder}")


def test_a_lock_is_held_by_one_process_and_dies_with_it(tmp_path):
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(UserError, match=f"in use by process {holder.pid} on "),
            locked(path, refuse),
        ):
            pass
        holder.kill()
    with locked(path, refuse):
        pass


def test_a_lock_whose_file_was_removed_is_no_lock(tmp_path):
    path = tmp_path / "lock"
    with locked(path, refuse):
        path.unlink()
        with locked(path, refuse):
            pass


def test_what_was_there_stays_where_nothing_can_be_written(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(path, b"before")

    def full(file):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*file: No space left.*takes 5 bytes.*free"):
        write_whole(path, b"after")
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_error_of_another_kind_is_left_alone(tmp_path):
    with pytest.raises(KeyError), writing(tmp_path):
        raise KeyError("not about writing")
