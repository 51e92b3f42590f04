"""Processes that train as one: how they find one another, and how they end when one is lost."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

import jax

from bottleneck.errors import UserError

# Set by launchers that jax knows how to read: SLURM's srun, Open MPI, TPU pods, multi-slice TPU.
_LAUNCHED = (
    "SLURM_STEP_NODELIST",
    "OMPI_MCA_orte_hnp_uri",
    "TPU_WORKER_HOSTNAMES",
    "TPU_PROCESS_ADDRESSES",
    "MEGASCALE_COORDINATOR_ADDRESS",
    "JAX_COORDINATOR_ADDRESS",
)


LOST = 4  # exit code of a process that has lost another

# How the libraries that carry collectives, and jax's own service, say that another has gone, which
# jax raises as a JaxRuntimeError or, in some of its paths, as a ValueError.
_GONE = re.compile(r"gloo|nccl|heartbeat|coordination|connection (closed|reset|refused)", re.I)


@dataclass(frozen=True)
class Processes:
    """An explicit world: where process 0 listens, how many there are, which one this is."""

    coordinator: str  # host:port
    count: int
    index: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"--processes={self.count} is not allowed; it must be at least 1")
        if not 0 <= self.index < self.count:
            raise UserError(
                f"--process={self.index} is not allowed; it must be from 0 to {self.count - 1}"
            )
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdigit():
            raise UserError(
                f"--coordinator={self.coordinator} is not allowed; it must be HOST:PORT"
            )


@contextlib.contextmanager
def ended_together() -> Iterator[None]:
    """Ends this process at once where the block raises, if it is one of many.

    The others wait for it in the middle of a step, and it would wait for them before it ended: so
    they learn of it within moments where collectives run over TCP, and elsewhere when jax misses
    its heartbeat, after 100 seconds.
    """
    try:
        yield
    except SystemExit:  # all of them have come to that
        raise
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        who = f"process {jax.process_index()} of {jax.process_count()}"
        if isinstance(error, UserError):
            code, line = error.exit_code, f"error: {error}; {who} ends, and so do the others"
        elif isinstance(error, (RuntimeError, ValueError)) and _GONE.search(str(error)):
            reason = " ".join(str(error).split())[:200]
            code, line = (
                LOST,
                (
                    f"error: {who} has lost another and ends ({reason}); what was saved is whole: "
                    "started again, all together, the run goes on from its last checkpoint"
                ),
            )
        else:
            code, line = 1, f"error: {who} ends, and so do the others"
            traceback.print_exception(error)
        print(line, file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(code)


def start(processes: Processes | None = None) -> None:
    """Joins this process to the others, where there are any; must come before any array is made."""
    if processes is not None:
        # What collectives run on between processes that have CPUs only.
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            processes.coordinator, num_processes=processes.count, process_id=processes.index
        )
    elif any(os.environ.get(name) for name in _LAUNCHED) or _is_tpu_host():
        jax.distributed.initialize()


def _is_tpu_host() -> bool:
    """Whether TPU chips are attached; a pod's hosts then find one another through its metadata."""
    is_asked_for = "tpu" in os.environ.get("JAX_PLATFORMS", "tpu")
    return is_asked_for and bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))
