"""Starting `jax.distributed` from what there is: TPU metadata, SLURM, Open MPI, or flags."""

from __future__ import annotations

import glob
import os
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
