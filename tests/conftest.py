"""Every test, and every program that a test starts, runs on the CPU unless told otherwise.

The CPU poses as four devices, so that a mesh can be tested; what needs one device takes the first.
"""

import os
from collections.abc import Callable
from pathlib import Path

import made_up_runs
import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Of programs that an earlier test run compiled none says what these sources do.
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")
if os.environ["JAX_PLATFORMS"] == "cpu":
    os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")


@pytest.fixture(scope="session")
def write_frozen_heads() -> Callable[[Path], None]:
    return made_up_runs.write_frozen_heads


@pytest.fixture(scope="session")
def write_run() -> Callable[..., Path]:
    return made_up_runs.write_run


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run by `made_up_runs.write_run`, under a name in the test's own folder."""
    return lambda name="run", **options: made_up_runs.write_run(tmp_path / name, **options)
