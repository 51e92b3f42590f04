"""requirements.lock names what setup.cfg asks for, with hashes, and LOCKED=1 installs just that."""

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[1]
LOCK = (REPOSITORY / "requirements.lock").read_text()
# An entry goes on over lines that are indented.
ENTRIES = re.findall(r"^[^#\s].*(?:\n[ ].*)*", LOCK, flags=re.MULTILINE)


def declared():
    """The requirements of the package and of its tests, as setup.cfg has them."""
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    lines = setup["options"]["install_requires"] + setup["options.extras_require"]["test"]
    return [Requirement(line) for line in lines.splitlines() if line and not line.startswith("#")]


def pins(version):
    """{name: version} of what the lock installs on 64-bit Linux with this Python."""
    environment = default_environment() | {
        "python_version": version,
        "python_full_version": f"{version}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
    }
    found = {}
    for entry in ENTRIES:
        requirement = Requirement(entry.splitlines()[0].rstrip(" \\"))
        if requirement.marker is None or requirement.marker.evaluate(environment):
            name = canonicalize_name(requirement.name)
            assert name not in found, f"{name} has two versions"
            (pin,) = requirement.specifier
            assert pin.operator == "==", requirement
            found[name] = pin.version
    return found


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_the_lock_is_within_every_bound_of_the_setup(version):
    locked = pins(version)
    outside = [
        f"{requirement}, and the lock has {locked.get(canonicalize_name(requirement.name))}"
        for requirement in declared()
        if locked.get(canonicalize_name(requirement.name)) not in requirement.specifier
    ]
    assert not outside, "make lock"


def test_the_lock_has_nothing_that_was_asked_for_once_and_is_no_more():
    asked_for = {
        canonicalize_name(Requirement(entry.splitlines()[0].rstrip(" \\")).name)
        for entry in ENTRIES
        if "softmax-bottleneck (setup.cfg)" in entry
    }
    assert asked_for == {canonicalize_name(requirement.name) for requirement in declared()}


def test_every_file_of_the_lock_has_a_hash_and_none_an_address():
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry) for entry in ENTRIES)
    assert "://" not in LOCK and "--index" not in LOCK and "--find-links" not in LOCK


VERSION = "{}.{}".format(*sys.version_info)
FROM_LOCK, UNLOCKED = "installed-from-lock", "installed-with-test"


@pytest.fixture
def house(tmp_path):
    """A repository with an environment that says it is whole, once it has a stamp."""
    for name in ("Makefile", "setup.cfg", "pyproject.toml", "requirements.lock"):
        shutil.copy(REPOSITORY / name, tmp_path)
    binaries = tmp_path / f".venv-python{VERSION}" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "python").symlink_to(sys.executable)
    return tmp_path


def would_do(house, *arguments, stamp=None):
    """What make would do, were it not told to say so alone."""
    if stamp:
        (house / f".venv-python{VERSION}" / stamp).write_text(f"{VERSION} {house.resolve()}\n")
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCKED", "MAKEFLAGS")}
    command = ["make", "-n", f"PYTHON={sys.executable}", *arguments]
    return subprocess.run(command, cwd=house, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("target", ["install", "demo", "test"])
def test_an_unlocked_environment_is_made_anew_from_the_lock(house, target):
    assert "pip install" not in would_do(house, target, stamp=UNLOCKED).stdout
    plan = would_do(house, target, "LOCKED=1").stdout
    cleared = plan.index("venv --clear")
    locked = plan.index("--require-hashes --requirement requirements.lock")
    assert cleared < locked < plan.index("--no-deps --editable '.'\n")


@pytest.mark.parametrize("target", ["install", "demo", "test"])
def test_a_locked_environment_serves_calls_that_do_not_ask_for_one(house, target):
    for arguments in (target, "LOCKED=1"), (target,), (target, "LOCKED=0"):
        plan = would_do(house, *arguments, stamp=FROM_LOCK)
        assert plan.returncode == 0
        assert "pip install" not in plan.stdout


def test_a_new_lock_is_installed_where_the_old_one_was(house):
    assert "--require-hashes" not in would_do(house, "install", stamp=FROM_LOCK).stdout
    made = (house / f".venv-python{VERSION}" / FROM_LOCK).stat().st_mtime
    os.utime(house / "requirements.lock", (made + 5, made + 5))
    assert "--require-hashes" in would_do(house, "install").stdout


def test_what_the_lock_leaves_out_cannot_be_asked_for_by_it(house):
    for target in "test-slow", "test-hf":
        plan = would_do(house, target, "LOCKED=1")
        assert plan.returncode == 2
        assert f"{target} needs what requirements.lock leaves out" in plan.stderr
