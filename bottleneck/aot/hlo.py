"""Collectives and cycles of a compiled program, read from the text of its HLO.

A program is a list of computations that call each other. An instruction runs as often as its
computation is reached, loops multiplied. A device's number is its place in the flattened mesh.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bottleneck.model.kernels.loss_pieces import RARELY

OPS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?(\S+) = (.*?) ([a-z][a-z0-9-]*)\((.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([^\s(]+) .*\{$")
_CALLED = re.compile(
    r"(?:calls|called_computations|to_apply|body|condition|branch_computations|true_computation"
    r"|false_computation)=(\{[^}]*\}|%?[^\s,)}]+)"
)
# A reduction between slices; we have seen no other transfer between slices.
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(ALL_REDUCE)"')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_SHAPE = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")


@dataclass(frozen=True)
class Shape:
    """A dense array of HLO, such as bf16[8,128]."""

    dtype: str
    dimensions: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class Collective:
    """One collective operation of a program, as one device sees it.

    Bytes assume the algorithms that send least: rings inside a slice, and rings over the devices
    at the same place in each slice.

    Source: Thakur, Rabenseifner and Gropp 2005, sections 4.1 and 4.5.
    """

    op: str  # one of OPS
    shapes: tuple[Shape, ...]  # results
    axes: tuple[str, ...]  # mesh axes along which it exchanges
    group_size: int  # devices that exchange
    n_slices: int  # that they belong to
    count: int  # runs in one run of the program

    @property
    def ici_bytes(self) -> float:
        """Bytes that a device sends inside its slice in one run."""
        if self.op == "collective-permute":
            return self._whole if self.n_slices == 1 else 0.0
        members = self.group_size / self.n_slices
        if self.op == "all-to-all":
            return self._whole * (members - 1) / self.group_size
        return self._rounds * self._whole * (members - 1) / members

    @property
    def dcn_bytes(self) -> float:
        """Bytes that a device sends to other slices in one run, after its own slice has reduced."""
        if self.op == "collective-permute":
            return self._whole if self.n_slices > 1 else 0.0
        members = 1 if self.op == "all-to-all" else self.group_size / self.n_slices
        return self._rounds * self._whole / members * (self.n_slices - 1) / self.n_slices

    @property
    def _rounds(self) -> int:
        return 2 if self.op == "all-reduce" else 1

    @property
    def _whole(self) -> float:
        """Bytes of the whole array that is gathered, reduced or exchanged."""
        result = sum(shape.bytes for shape in self.shapes)
        return result * (self.group_size if self.op == "reduce-scatter" else 1)


@dataclass(frozen=True)
class _Instruction:
    name: str
    result: str
    op: str
    rest: str  # operands and attributes


def collectives(
    text: str, mesh_shape: Mapping[str, int], slices: Sequence[int] | None = None
) -> list[Collective]:
    """Returns every collective of a program's HLO text that moves data, in the text's order.

    An asynchronous collective counts once, at its start. A loop runs as often as the text says, or
    as the constant in its condition; any other loop counts once. On TPUs a reduce-scatter is a
    computation of that name that slices an all-reduce. Between slices TPUs send and receive; a
    send that names its collective counts as one over the devices at the same place in each slice.

    Args:
        mesh_shape: axis → devices along it, in the order of the mesh.
        slices: the slice of each device; None if all are in one.
    """
    program = _Program(text)
    sizes = tuple(mesh_shape.values())
    slice_of = np.zeros(math.prod(sizes), int) if slices is None else np.asarray(slices)
    found = []
    for computation, instructions in program.computations.items():
        starts = any('custom_call_target="AsyncCollectiveStart"' in i.rest for i in instructions)
        for instruction in instructions:
            op = instruction.op.removesuffix("-start")
            is_piece = "chain_id=" in instruction.rest and not starts
            if op in OPS and not is_piece:
                members = _members(instruction.rest, slice_of.size)
            elif transfer := _TRANSFER.search(instruction.rest) if op == "send" else None:
                op = transfer[1].lower().replace("_", "-")
                members = _one_of_each(slice_of)
            else:
                continue
            axes = _axes(members, mesh_shape)
            if axes:
                result = instruction
                if op == "all-reduce" and computation.startswith("all-reduce-scatter"):
                    op, result = "reduce-scatter", instructions[-1]
                shapes = tuple(_shapes(_result(result)))
                n_slices = max(len(set(group)) for group in slice_of[members].tolist())
                times = program.executions(computation)
                assert times, f"how is {computation} called?"
                found.append(Collective(op, shapes, axes, members.shape[1], n_slices, times))
    return found


def estimated_cycles(text: str) -> int:
    """Returns the compiler's estimate of the cycles that a program takes on a TPU's core.

    The compiler estimates no collectives, no table lookups or their gradients, and no custom
    kernels such as flash attention. Code that runs only `RARELY` is left out.

    Args:
        text: the program after code generation.
    """
    program = _Program(text)
    return sum(
        int(estimate[1]) * program.executions(computation)
        for computation, instructions in program.computations.items()
        for instruction in instructions
        if (estimate := _CYCLES.search(instruction.rest))
    )


class _Program:
    """The computations of an HLO text, and the number of times each runs."""

    def __init__(self, text: str):
        self.computations: dict[str, list[_Instruction]] = {}
        self._entry = ""
        for line in text.splitlines():
            if not line.startswith((" ", "}")) and (header := _COMPUTATION.match(line)):
                is_entry, name = header.groups()
                current = self.computations[name] = []
                if is_entry:
                    self._entry = name
            elif self.computations and (match := _INSTRUCTION.match(line)):
                current.append(_Instruction(*match.groups()))
        self._callers: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for name, instructions in self.computations.items():
            for instruction in instructions:
                times = self._times(instruction)
                for called in _called(instruction.rest):
                    self._callers[called].append((name, times))
        self.executions = functools.cache(self._executions)

    def _executions(self, name: str) -> int:
        if name == self._entry:
            return 1
        return sum(self.executions(caller) * times for caller, times in self._callers[name])

    def _times(self, instruction: _Instruction) -> int:
        """Returns the number of times that an instruction runs the computations it calls."""
        if instruction.op == "conditional" and f"/{RARELY}/" in instruction.rest:
            return 0
        return self._trips(instruction) if instruction.op == "while" else 1

    def _trips(self, loop: _Instruction) -> int:
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest):
            return int(known[1])
        condition = re.search(r"condition=%?([^\s,]+)", loop.rest)
        assert condition is not None, loop
        limits = [
            int(instruction.rest.split(")")[0])
            for instruction in self.computations[condition[1]]
            if instruction.op == "constant" and re.match(r"[su]\d+\[\]", instruction.result)
        ]
        return max(limits, default=1)


def _called(rest: str) -> Iterator[str]:
    for names in _CALLED.findall(rest):
        yield from (name.strip(" %") for name in names.strip("{}").split(","))


def _result(instruction: _Instruction) -> str:
    """Returns the type of the result; the start of a collective lists its operands first."""
    if instruction.op in ("all-gather-start", "collective-permute-start"):
        return _tuple_parts(instruction.result)[1]
    if instruction.op == "send":
        return _tuple_parts(instruction.result)[0]
    return instruction.result


def _tuple_parts(text: str) -> list[str]:
    """Returns the types in a tuple's type, at its outermost level."""
    parts, depth, start = [], 0, 1
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if (character == "," and depth == 1) or depth == 0:
            parts.append(text[start:position])
            start = position + 1
    return parts


def _shapes(text: str) -> Iterator[Shape]:
    for dtype, bits, dimensions in _SHAPE.findall(text):
        sizes = tuple(int(size) for size in dimensions.split(",") if size)
        yield Shape(dtype, sizes, math.prod(sizes) * int(bits or 8) // 8)


def _one_of_each(slice_of: np.ndarray) -> np.ndarray:
    """int [places, slices]: the devices at the same place in each slice."""
    return np.stack([np.flatnonzero(slice_of == one) for one in np.unique(slice_of)], axis=1)


def _axes(members: np.ndarray, mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """Returns the mesh axes along which the members of a group differ."""
    coordinates = np.unravel_index(members, tuple(mesh_shape.values()))
    return tuple(
        axis
        for axis, along in zip(mesh_shape, coordinates, strict=True)
        if (along != along[:, :1]).any()
    )


def _members(rest: str, n_devices: int) -> np.ndarray:
    """int [groups, members]: the devices that exchange with each other."""
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", rest):
        return _integers(pairs[1]).reshape(-1, 2)
    groups = re.search(
        r"replica_groups=(mesh\[[^\]]*\].*? \{.*?\}|\S+?(?:\}\}|\{\}|(?=,\s|$)))", rest
    )
    assert groups is not None, rest
    text = groups[1]
    if text.startswith("mesh"):
        return _mesh_groups(text)
    if "<=" in text:
        return _iota(text)
    members = [_integers(group) for group in text.strip("{}").split("},{")]
    return np.stack(members) if members[0].size else np.arange(n_devices)[None]


def _iota(text: str) -> np.ndarray:
    """[4,2]<=[2,4]T(1,0): the devices laid out as [2,4], transposed, then shaped [4,2]."""
    shape, source, order = re.fullmatch(  # type: ignore[union-attr]
        r"(?:\[(.*?)\]<=)?\[(.*?)\](?:T\((.*?)\))?", text
    ).groups()
    dimensions = _integers(source)
    devices = np.arange(dimensions.prod()).reshape(dimensions)
    devices = devices.transpose(_integers(order) if order else None)
    return devices.reshape(_integers(shape)) if shape else devices


def _mesh_groups(text: str) -> np.ndarray:
    """mesh['a'=2,'b'=8], device_ids=(…) {'a','b':(2)4}: groups along axes or parts of axes.

    'b':(2)4 splits b into 2 blocks, and takes the 4 devices of each.
    """
    mesh, devices, chosen = re.fullmatch(  # type: ignore[union-attr]
        r"mesh\[(.*?)\](?:, device_ids=\((.*?)\))? \{(.*)\}", text
    ).groups()
    wanted = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", chosen)
    names: list[tuple[str, int]] = []  # of a dimension: its axis, and the blocks that it divides
    sizes: list[int] = []
    for axis, size in re.findall(r"'([^']+)'=(\d+)", mesh):
        cuts = {1, int(size)}
        for name, before, part in wanted:
            if name == axis and part:
                cuts |= {int(before), int(before) * int(part)}
        bounds = sorted(cuts)
        for low, high in itertools.pairwise(bounds):
            names.append((axis, low))
            sizes.append(high // low)
    inside = [_parts_of(names, sizes, *part) for part in wanted]
    last = [dimension for dimensions in inside for dimension in dimensions]
    first = [dimension for dimension in range(len(sizes)) if dimension not in last]
    if devices and re.search("<=|T", devices):
        order = _iota(devices).reshape(sizes)
    else:
        order = (_integers(devices) if devices else np.arange(math.prod(sizes))).reshape(sizes)
    return order.transpose(first + last).reshape(-1, math.prod(sizes[i] for i in last))


def _parts_of(
    names: list[tuple[str, int]], sizes: list[int], axis: str, before: str, part: str
) -> list[int]:
    """Returns the dimensions of an axis, or of the part of it that divides `before` blocks."""
    low = int(before or 1)
    high = low * int(part) if part else math.inf
    return [
        index
        for index, (name, start) in enumerate(names)
        if name == axis and low <= start and start * sizes[index] <= high
    ]


def _integers(text: str) -> np.ndarray:
    return np.array([int(number) for number in re.findall(r"\d+", text)], dtype=int)
