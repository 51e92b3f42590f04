"""Every test, and every program that a test starts, runs on the CPU unless told otherwise.

The CPU poses as four devices, so that a mesh can be tested; tests that need one device take the
first. Compiled programs are kept in .pytest_cache: jax finds them by a hash of the program itself,
so changed sources are compiled again.
"""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import made_up_runs
import pytest
from hypothesis import HealthCheck, settings

PROGRAMS = Path(__file__).parents[1] / ".pytest_cache" / "programs"
LONGEST = (
    "faults/test_worlds",
    "faults/test_killed_jobs",
    "training/test_mesh_invariance",
    "frozen/test_study",
    "training/test_resume",
    "model/test_loss",
    "parallel/test_distributed",
    "aot/test_hlo",
    "model/test_transformer",
    "faults/test_killed_training",
    "faults/test_divergence",
    "frozen/test_extraction",
    "faults/test_disks",
    "training/test_step",
    "laws/test_scaling_law",
    "kernels/test_attention",
    "training/test_determinism",
    "tests/test_config_fields",
    "kernels/test_cpu",
    "faults/test_determinism_of_numbers",
)

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(PROGRAMS))
if os.environ["JAX_PLATFORMS"] == "cpu":
    os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
    # Compiling takes longer than nearly all that is compiled here; `optimized` is for the rest.
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


# Tests in the background would hand down that they ignore it to the programs that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Always the same few examples; `make faults` draws many others. HYPOTHESIS_PROFILE chooses.
settings.register_profile(
    "few", max_examples=25, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
)
settings.register_profile("many", settings.get_profile("few"), max_examples=300, derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "few"))


def pytest_sessionstart(session: pytest.Session) -> None:
    """Opens the store of programs, in every process but one that only hands tests to workers."""
    if hasattr(session.config, "workerinput") or not session.config.getoption("numprocesses", 0):
        from bottleneck.parallel import compile_cache

        compile_cache.use()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first, so that no worker is left with one at the end."""
    rank = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(f"{item.path.parent.name}/{item.path.stem}", len(rank)))


@pytest.fixture(scope="module")
def optimized() -> Iterator[None]:
    """Lets the compiler optimize, where the arithmetic of a module's tests takes the longest."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


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
