"""A rehearsal for hardware that is not here: the programs of a run, compiled for a TPU topology.

libtpu compiles on any machine for any slice. What it says of memory is what a real slice would say;
the collectives are read from the program it made; what the roofline adds is arithmetic.
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from bottleneck.config import Config, check_batch_divides
from bottleneck.errors import UserError
from bottleneck.parallel import mesh as mesh_lib
from bottleneck.parallel.chips import Chip, chip_of
from bottleneck.training.hlo import Collective, collectives
from bottleneck.training.roofline import Roofline, roofline
from bottleneck.training.step import BATCH_TYPES, make_train_program

# libtpu otherwise asks a metadata server what machine this is, writes logs to the terminal and to
# /tmp, and lets one process at a time have it. Must be set before jax is imported.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # a program from the cache leaves no text to read
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_WORKER_HOSTNAMES": "localhost",
}

TRAIN_STEP = "train step"


@dataclass(frozen=True)
class Memory:
    """Bytes of one device's HBM that a program needs."""

    arguments: int  # parameters, optimizer state, batch; results take their place
    temporaries: int
    code: int

    @property
    def peak(self) -> int:
        return self.arguments + self.temporaries + self.code


@dataclass(frozen=True)
class Buffer:
    """A part of the temporaries."""

    bytes: int
    shape: str
    source: str  # the operation that fills it, by its path in the program


@dataclass(frozen=True)
class ProgramReport:
    """What the compiler made of one program."""

    name: str
    fits: bool
    memory: Memory
    largest: tuple[Buffer, ...]  # of the temporaries, those that are in memory at different places
    collectives: tuple[Collective, ...]
    trace_seconds: float
    compile_seconds: float
    roofline: Roofline | None  # of the train step, whose arithmetic is known


@dataclass(frozen=True)
class Rehearsal:
    """A config on a topology."""

    topology: str
    n_slices: int
    mesh: dict[str, int]
    chip: Chip
    programs: tuple[ProgramReport, ...]
    advice: tuple[str, ...]  # what to change where a program does not fit

    @property
    def fits(self) -> bool:
        return all(program.fits for program in self.programs)


def rehearse(config: Config, topology: str, n_slices: int = 1) -> Rehearsal:
    """Compiles the programs of a run of `config` on slices of a topology such as "v5e:16x16".

    Raises:
        UserError: where libtpu is missing, the topology is not known, or the config does not fit
            its number of devices.
    """
    chip = chip_of(topology)
    devices = topology_devices(topology, chip, n_slices)
    mesh = mesh_lib.make_mesh(config.mesh, devices)
    check_batch_divides(config, dict(mesh.shape))
    reports = []
    with jax.set_mesh(mesh):
        for name in (TRAIN_STEP,):
            reports.append(_report(name, config, mesh, chip))
    return Rehearsal(
        topology,
        n_slices,
        dict(mesh.shape),
        chip,
        tuple(reports),
        tuple(
            line for report in reports if not report.fits for line in advice(config, mesh, report)
        ),
    )


def lowered(name: str, config: Config, mesh: Mesh) -> Any:
    """A program of a run, ready to be compiled for the mesh in context: all that are rehearsed."""
    assert name == TRAIN_STEP
    program = make_train_program(config, mesh)
    shape = (config.train.batch_size, config.train.sequence_length)
    sharding = mesh_lib.batch_sharding(mesh)
    batch = {
        key: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for key, dtype in BATCH_TYPES.items()
    }
    return program.step.lower(*program.abstract_state, batch)
