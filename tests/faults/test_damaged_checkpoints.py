"""A checkpoint that is damaged is found out before it is used, and the one before it serves."""

import shutil

import pytest


def _truncate(path, source):
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(source.randrange(size))


def _flip_a_bit(path, source):
    content = bytearray(path.read_bytes())
    content[source.randrange(len(content))] ^= 1 << source.randrange(8)
    path.write_bytes(content)


def _delete(path, source):
    path.unlink()


DAMAGE = {"truncated": _truncate, "a bit flipped": _flip_a_bit, "deleted": _delete}


# A mark that orbax puts beside what it has committed, and what is found damaged by itself.
UNSEALED = ("commit_success.txt", "seal.json")


def unfinished(undisturbed, workdir):
    """A copy of the run, as if it had been killed just before its end."""
    shutil.copytree(undisturbed, workdir)
    (workdir / "COMPLETE").unlink()
    return workdir


def files_of(checkpoint, source):
    """A file of it that has contents."""
    items = ("params", "opt_state", "meta")
    files = sorted(path for item in items for path in (checkpoint / item).rglob("*"))
    return source.choice(
        [p for p in files if p.is_file() and p.stat().st_size and p.name not in UNSEALED]
    )


@pytest.mark.parametrize("kind", DAMAGE)
def test_the_newest_checkpoint_is_damaged(faults, lab, undisturbed, tmp_path, kind):
    source = faults.source()

    def trial(index):
        workdir = unfinished(undisturbed, tmp_path / f"run-{index}")
        older, newest = faults.saved_steps(workdir)
        path = files_of(workdir / "checkpoints" / str(newest), source)
        DAMAGE[kind](path, source)
        output = lab.training().finish(workdir)
        if f"continuing from step {older}" not in output:
            raise faults.WrongResult(f"it took the checkpoint with {path}, {kind}")
        assert f"the checkpoint of step {newest} is damaged and is not used: {path}" in output
        assert (workdir / "damaged" / f"checkpoint-{newest}").is_dir()
        faults.assert_same_run(workdir, undisturbed)
        return f"{newest - older} steps"

    claim = "the one before is used, the file is named, and it ends bit-identical"
    faults.run_trials(f"file of a checkpoint {kind}", claim, trial, full=10)


def test_no_checkpoint_is_whole(faults, lab, undisturbed, tmp_path):
    source = faults.source()

    def trial(index):
        workdir = unfinished(undisturbed, tmp_path / f"run-{index}")
        for step in faults.saved_steps(workdir):
            _flip_a_bit(files_of(workdir / "checkpoints" / str(step), source), source)
        before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
        output = lab.training().finish(workdir, code=2)
        assert "is intact" in output and "restore one from a copy" in output
        for path, content in before.items():
            if path.read_bytes() != content and path.name not in (".lock", "config.json"):
                raise faults.WrongResult(f"{path} has changed")
        return None

    claim = "refuses to begin anew, and touches nothing"
    faults.run_trials("every checkpoint damaged", claim, trial, full=3)
