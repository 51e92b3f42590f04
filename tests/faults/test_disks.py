"""Disks that are full, under a quota, slow, read-only or broken: one line, and nothing is lost."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import HANGING

SHIM = Path(__file__).with_name("disk_shim.c")

# As root of a name space of our own, where a small disk can be made: too small, then enlarged.
FULL_DISK = """
set -e
mount -t tmpfs -o size="$1" none "$2"
shift 2
code=0
"$@" || code=$?
echo "code $code"
ls -A disk/run
mount -o remount,size=100m disk
"$@"
cp -r disk/run copy
"""

READ_ONLY_DISK = """
set -e
mount --bind "$1" "$1"
mount -o remount,bind,ro "$1"
shift
"$@"
"""


def in_name_space(script, *arguments, cwd, environment=None):
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module", autouse=True)
def name_spaces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("name space")
    if sys.platform != "linux" or in_name_space("mount -t tmpfs none .", cwd=folder).returncode:
        pytest.skip("this system lets nobody mount a disk in a name space of their own")


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, SHIM, "-ldl"], check=True)
    return str(library)


def command(lab, folder):
    return [
        *(sys.executable, "-m", "bottleneck", "train"),
        *(f"--config={lab.config}", f"--workdir={folder}"),
    ]


def test_a_full_disk(faults, lab, undisturbed, tmp_path):
    source = faults.source()
    largest = sum(path.stat().st_size for path in undisturbed.rglob("*") if path.is_file())

    def trial(index):
        folder = tmp_path / str(index)
        (folder / "disk").mkdir(parents=True)
        room = str(source.randrange(8_192, largest))
        # As a module of the repository, and from a folder that is not that.
        environment = lab.environment | {"PYTHONPATH": os.getcwd()}
        result = in_name_space(
            FULL_DISK,
            *(room, "disk", *command(lab, "disk/run")),
            cwd=folder,
            environment=environment,
        )
        assert result.returncode == 0, result.stderr
        assert "code 2" in result.stdout and "Traceback" not in result.stderr, result.stderr
        (line,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
        assert "cannot write disk/run" in line or f"cannot write {folder}" in line
        assert "No space left on device; it takes" in line or "are free" in line
        faults.assert_same_run(folder / "copy", undisturbed)
        return None

    claim = "one line with path and bytes; with more room it ends bit-identical"
    faults.run_trials("disk full", claim, trial, full=10)


def test_a_quota_or_a_broken_disk(faults, lab, undisturbed, tmp_path, shim):
    source = faults.source()

    def trial(index):
        workdir = tmp_path / f"run-{index}"
        number = source.choice((errno.EDQUOT, errno.ENOSPC, errno.EIO))
        broken = lab.training(
            LD_PRELOAD=shim,
            SHIM_FOLDER=str(workdir),
            SHIM_ERRNO=str(number),
            SHIM_WRITES=str(source.randrange(1, 400)),
        )
        process = broken.start(workdir)
        output, _ = process.communicate(timeout=HANGING)
        assert process.returncode == 2 and "Traceback" not in output, output
        line = output.splitlines()[-1]
        assert line.startswith(f"error: cannot write {workdir}"), output
        assert os.strerror(number) in line
        lab.training().finish(workdir)
        faults.assert_same_run(workdir, undisturbed)
        return None

    claim = "one line with the path; mended, it ends bit-identical"
    faults.run_trials("writing fails (EDQUOT, ENOSPC, EIO)", claim, trial, full=20)


def test_a_slow_disk(faults, lab, undisturbed, tmp_path, shim):
    source = faults.source()

    def trial(index):
        workdir = tmp_path / f"run-{index}"
        slow = lab.training(LD_PRELOAD=shim, SHIM_FOLDER=str(workdir), SHIM_DELAY="20000")
        goal = source.randrange(0, 50)
        slow.kill(workdir, lambda: faults.last_step(workdir) >= goal, delay=source.random())
        steps = faults.last_step(workdir) - max(faults.saved_steps(workdir), default=0)
        lab.training().finish(workdir)
        faults.assert_same_run(workdir, undisturbed)
        return f"{steps} steps" if steps > 0 else None

    claim = "20 ms for each write, and a SIGKILL: it ends bit-identical"
    faults.run_trials("slow disk", claim, trial, full=10, quick=0)


def test_a_folder_that_is_read_only(faults, lab, undisturbed, tmp_path):
    def trial(index):
        folder = tmp_path / str(index)
        folder.mkdir()
        if index % 2:
            shutil.copytree(undisturbed, folder / "run")
            (folder / "run" / "COMPLETE").unlink()
        result = in_name_space(
            READ_ONLY_DISK,
            *(str(folder), *command(lab, folder / "run")),
            cwd=os.getcwd(),
            environment=lab.environment,
        )
        assert result.returncode == 2, result.stderr
        (line,) = (line for line in result.stderr.splitlines() if "error: " in line)
        assert f"cannot write {folder / 'run'}" in line and "Read-only file system" in line
        assert "Traceback" not in result.stderr
        return None

    claim = "one line with the path, before anything is computed"
    faults.run_trials("read-only folder", claim, trial, full=4, quick=2)
