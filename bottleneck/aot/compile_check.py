"""A rehearsal for absent hardware: compiles the programs of a run for a TPU topology.

libtpu compiles for any slice on any machine, and plans memory as it would on the slice. Collectives
are read from the compiled program; the roofline is arithmetic.
"""

from __future__ import annotations

import importlib.util
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from bottleneck.aot.hlo import Collective, collectives, estimated_cycles
from bottleneck.aot.roofline import Roofline, step_roofline
from bottleneck.config import Config, check_divides
from bottleneck.errors import UserError
from bottleneck.parallel import mesh as mesh_lib
from bottleneck.parallel.chips import Chip, chip_of
from bottleneck.probes.programs import ProbePrograms
from bottleneck.signals import removed
from bottleneck.training.step import make_train_program

TRAIN_STEP = "train step"


@dataclass(frozen=True)
class Memory:
    """Bytes of HBM that a program needs on one device."""

    arguments: int  # parameters, optimizer state, batch; results reuse their space
    temporaries: int
    code: int

    @property
    def peak(self) -> int:
        return self.arguments + self.temporaries + self.code


@dataclass(frozen=True)
class Buffer:
    """One of the temporaries."""

    bytes: int
    shape: str
    source: str  # path in the program of the operation that fills it, or the instruction's name


@dataclass(frozen=True)
class ProgramReport:
    """One program as compiled."""

    fits: bool
    memory: Memory
    largest: tuple[Buffer, ...]  # temporaries that share no memory with each other
    collectives: tuple[Collective, ...]
    cycles: int | None  # by `estimated_cycles`; None if the program does not fit
    has_flash_attention: bool
    compile_seconds: float


@dataclass(frozen=True)
class Rehearsal:
    """The compiled programs of a config on a topology."""

    topology: str
    n_slices: int
    mesh: dict[str, int]
    chip: Chip
    programs: dict[str, ProgramReport]
    roofline: Roofline  # of the train step

    @property
    def fits(self) -> bool:
        return all(program.fits for program in self.programs.values())


def rehearse(
    config: Config, topology: str, n_slices: int = 1, *, with_probes: bool = True
) -> Rehearsal:
    """Compiles the programs of a run of `config` on slices of a topology such as "v5e:16x16".

    Raises:
        UserError: libtpu is missing, the topology is unknown, or its number of devices does not
            divide the config's batch or dimensions.
    """
    chip = chip_of(topology)
    mesh = mesh_lib.make_mesh(config.compute.mesh, topology_devices(topology, n_slices))
    check_divides(config, dict(mesh.shape))
    train, length = make_train_program(config, mesh), config.train.sequence_length
    probe = ProbePrograms(config, mesh, max(1, config.probe.tokens // length))
    with jax.set_mesh(mesh):
        lowered = {TRAIN_STEP: train.lower(config.train.batch_size, length)}
        if with_probes:
            of_probe = probe.lower(train.abstract_state[0])
            lowered |= {f"probe, {name}": program for name, program in of_probe.items()}
    programs = {name: _rehearse(program, mesh) for name, program in lowered.items()}
    step = programs[TRAIN_STEP]
    limits = step_roofline(
        config, mesh.shape, chip, step.collectives, flash_attention=step.has_flash_attention
    )
    return Rehearsal(topology, n_slices, dict(mesh.shape), chip, programs, limits)


def topology_devices(topology: str, n_slices: int = 1) -> list[jax.Device]:
    """Returns the devices of absent slices; raises `UserError` like `rehearse`."""
    chip = chip_of(topology)
    options: dict[str, Any] = {} if n_slices == 1 else {"num_slices": n_slices}
    if chip.compiler_config is not None:
        options["chip_config_name"] = chip.compiler_config
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "libtpu, the TPU compiler, is missing; in the repository: pip install -e '.[tpu]'"
        )
    try:
        return topologies.get_topology_desc(topology, "tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        what = str(error).partition("INVALID_ARGUMENT: ")[2] or str(error)
        raise UserError(f"--topology={topology}: {' '.join(what.split())}") from error


def _rehearse(lowered: Any, mesh: jax.sharding.Mesh) -> ProgramReport:
    start = time.perf_counter()
    folder = tempfile.mkdtemp()
    with removed(folder):
        # Read the compiler's own dumps: jax cannot print programs for every kind of TPU, and
        # returns nothing if a program does not fit.
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            compiled = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            if not re.search("RESOURCE_EXHAUSTED.*hbm", str(error), re.IGNORECASE | re.DOTALL):
                raise
            compiled = None
        seconds = time.perf_counter() - start
        hlo = _dumped(folder, "after_optimizations.txt")
        buffers = _dumped(folder, "after_optimizations-buffer-assignment.txt")
        cycles = estimated_cycles(_dumped(folder, "after_codegen.txt")) if compiled else None
    slices = [getattr(device, "slice_index", 0) for device in mesh.devices.flat]
    return ProgramReport(
        fits=compiled is not None,
        memory=_memory(buffers, compiled),
        largest=tuple(largest_buffers(buffers, hlo)),
        collectives=tuple(collectives(hlo, mesh.shape, slices)),
        cycles=cycles,
        has_flash_attention="splash" in hlo,
        compile_seconds=seconds,
    )


def _dumped(folder: str, ending: str) -> str:
    (path,) = Path(folder).glob(f"*.{ending}")
    return path.read_text(encoding="utf-8")


_ALLOCATION = re.compile(r"allocation \d+: size (\d+),(.*)")
_VALUE = re.compile(r" value: <\d+ (\S+?)(?:\{[\d,]*\})? .*\(size=(\d+),offset=(\d+)\): (\S+)")


def _memory(buffers: str, compiled: Any) -> Memory:
    """Reads the compiler's buffer assignment; a program that does not fit has no code.

    `memory_analysis()` says 19.0 GB for programs that libtpu 0.0.42 fits into 17.2 GB.
    """
    arguments = temporaries = 0
    for size, kind in _ALLOCATION.findall(buffers):
        if "color" in kind:  # a memory other than HBM
            continue
        if "parameter" in kind:
            arguments += int(size)
        elif "temp" in kind or "live-out" in kind:
            temporaries += int(size)
    code = 0 if compiled is None else compiled.memory_analysis().generated_code_size_in_bytes
    return Memory(arguments, temporaries, code)


def largest_buffers(buffers: str, hlo: str, n: int = 8) -> list[Buffer]:
    """Returns the largest temporaries in HBM that share no memory, the largest first.

    Args:
        buffers: text of the compiler's buffer assignment.
        hlo: text of the program, which names the source of each value.
    """
    values, is_temporary = [], False
    for line in buffers.splitlines():
        if allocation := _ALLOCATION.match(line):
            is_temporary = "temp" in allocation[2] and "color" not in allocation[2]
        elif is_temporary and (value := _VALUE.match(line)):
            values.append((int(value[2]), int(value[3]), value[1], value[4]))
    found: list[Buffer] = []
    taken: list[tuple[int, int]] = []
    for size, offset, name, shape in sorted(values, key=lambda value: -value[0]):
        if len(found) == n:
            break
        if all(offset >= end or offset + size <= start for start, end in taken):
            taken.append((offset, offset + size))
            source = re.search(rf"%{re.escape(name)} = .*?op_name=\"([^\"]*)\"", hlo)
            found.append(Buffer(size, shape.partition("{")[0], source[1] if source else name))
    return found
