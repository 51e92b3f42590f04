"""Processes that train together: joining them, and ending all of them when one is lost."""

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

# Variables of launchers that jax reads: SLURM's srun, Open MPI, TPU pods, multi-slice TPU.
_LAUNCHED = (
    "SLURM_STEP_NODELIST",
    "OMPI_MCA_orte_hnp_uri",
    "TPU_WORKER_HOSTNAMES",
    "TPU_PROCESS_ADDRESSES",
    "MEGASCALE_COORDINATOR_ADDRESS",
    "JAX_COORDINATOR_ADDRESS",
)

LOST = 4  # exit code of a process that has lost another

# Words in the errors of collectives and of jax's own service when another process is gone; jax
# raises a JaxRuntimeError or a ValueError.
_GONE = re.compile(r"gloo|nccl|heartbeat|coordination|connection (closed|reset|refused)", re.I)


@dataclass(frozen=True)
class Processes:
    """An explicit world: the address of process 0, the number of processes, this one's index."""

    coordinator: str  # host:port
    count: int
    index: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"--processes={self.count} must be at least 1")
        if not 0 <= self.index < self.count:
            raise UserError(f"--process={self.index} must be from 0 to {self.count - 1}")
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdigit():
            raise UserError(f"--coordinator={self.coordinator} must be HOST:PORT")


@contextlib.contextmanager
def ended_together() -> Iterator[None]:
    """Ends this process at once if the block raises and it is one of many.

    A normal exit would wait for the others, which are in the middle of a step and wait for it. They
    notice within moments if collectives run over TCP; otherwise after 100 seconds, when jax misses
    a heartbeat.
    """
    try:
        yield
    except SystemExit:  # all processes exit
        raise
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        who = f"process {jax.process_index()} of {jax.process_count()}"
        if isinstance(error, UserError):
            code, line = error.exit_code, f"error: {error}; {who} ends, and with it the others"
        elif isinstance(error, (RuntimeError, ValueError)) and _GONE.search(str(error)):
            reason = " ".join(str(error).split())[:200]
            code = LOST
            line = (
                f"error: {who} has lost another and ends ({reason}); checkpoints are intact: "
                "start all processes again to resume from the last one"
            )
        else:
            code, line = 1, f"error: {who} ends, and with it the others"
            traceback.print_exception(error)
        print(line, file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(code)


def start(processes: Processes | None = None) -> None:
    """Joins this process to the others, if any; must precede the first array."""
    if processes is not None:
        # Collectives between CPUs need gloo.
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            processes.coordinator, num_processes=processes.count, process_id=processes.index
        )
        return
    # The metadata of a TPU pod lists its hosts.
    chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    is_tpu_host = bool(chips) and "tpu" in os.environ.get("JAX_PLATFORMS", "tpu")
    if is_tpu_host or any(os.environ.get(name) for name in _LAUNCHED):
        jax.distributed.initialize()
