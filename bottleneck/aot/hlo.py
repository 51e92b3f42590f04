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
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    computations, executions = _parsed(text)
    n_devices = math.prod(mesh_shape.values())
    slice_of = np.zeros(n_devices, int) if slices is None else np.asarray(slices)
    found = []
    for computation, instructions in computations.items():
        starts = any('custom_call_target="AsyncCollectiveStart"' in i.rest for i in instructions)
        for instruction in instructions:
            op = instruction.op.removesuffix("-start")
            is_piece = "chain_id=" in instruction.rest and not starts
            if op in OPS and not is_piece:
                members = _members(instruction.rest, slice_of.size)
            elif transfer := _TRANSFER.search(instruction.rest) if op == "send" else None:
                op = transfer[1].lower().replace("_", "-")
                same_place = [np.flatnonzero(slice_of == one) for one in np.unique(slice_of)]
                members = np.stack(same_place, axis=1)
            else:
                continue
            axes = _axes(members, mesh_shape)
            if axes:
                result = instruction
                if op == "all-reduce" and computation.startswith("all-reduce-scatter"):
                    op, result = "reduce-scatter", instructions[-1]
                shapes = tuple(_shapes(result))
                n_slices = max(len(set(group)) for group in slice_of[members].tolist())
                times = executions(computation)
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
    computations, executions = _parsed(text)
    return sum(
        int(estimate[1]) * executions(computation)
        for computation, instructions in computations.items()
        for instruction in instructions
        if (estimate := _CYCLES.search(instruction.rest))
    )


def _parsed(text: str) -> tuple[dict[str, list[_Instruction]], Callable[[str], int]]:
    """Returns the computations of an HLO text, and a function that counts the runs of one."""
    computations: dict[str, list[_Instruction]] = {}
    entry = ""
    for line in text.splitlines():
        if not line.startswith((" ", "}")) and (header := _COMPUTATION.match(line)):
            is_entry, name = header.groups()
            current = computations[name] = []
            entry = name if is_entry else entry
        elif computations and (match := _INSTRUCTION.match(line)):
            current.append(_Instruction(*match.groups()))
    callers: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for name, instructions in computations.items():
        for instruction in instructions:
            times = _times(instruction, computations)
            for called in _CALLED.findall(instruction.rest):
                for one in called.strip("{}").split(","):
                    callers[one.strip(" %")].append((name, times))

    @functools.cache
    def executions(name: str) -> int:
        if name == entry:
            return 1
        return sum(executions(caller) * times for caller, times in callers[name])

    return computations, executions


def _times(instruction: _Instruction, computations: Mapping[str, list[_Instruction]]) -> int:
    """Returns the number of times that an instruction runs the computations it calls."""
    if instruction.op == "conditional" and f"/{RARELY}/" in instruction.rest:
        return 0
    if instruction.op != "while":
        return 1
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', instruction.rest):
        return int(known[1])
    condition = re.search(r"condition=%?([^\s,]+)", instruction.rest)
    assert condition is not None, instruction
    limits = [
        int(each.rest.split(")")[0])
        for each in computations[condition[1]]
        if each.op == "constant" and re.match(r"[su]\d+\[\]", each.result)
    ]
    return max(limits, default=1)


# Operations whose result is a tuple → the place in it of what other devices get.
_PLACES = {"all-gather-start": 1, "collective-permute-start": 1, "send": 0}


def _shapes(instruction: _Instruction) -> Iterator[Shape]:
    text = instruction.result
    if instruction.op in _PLACES:
        text = _tuple_parts(text)[_PLACES[instruction.op]]
    for dtype, bits, dimensions in _SHAPE.findall(text):
        sizes = tuple(int(size) for size in dimensions.split(",") if size)
        yield Shape(dtype, sizes, math.prod(sizes) * int(bits or 8) // 8)


def _tuple_parts(text: str) -> list[str]:
    """Returns the types in a tuple's type, at its outermost level."""
    parts, depth, start = [], 0, 1
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if (character == "," and depth == 1) or depth == 0:
            parts.append(text[start:position])
            start = position + 1
    return parts


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
    sizes_of = {axis: int(size) for axis, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    wanted = []
    for axis, before, part in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", chosen):
        low = int(before or 1)
        wanted.append((axis, low, low * int(part or sizes_of[axis])))
    dimensions: list[tuple[str, int, int]] = []  # an axis, and the blocks before and after it
    for axis, size in sizes_of.items():
        cuts = {1, size}.union(*(ends for name, *ends in wanted if name == axis))
        dimensions += [(axis, low, high) for low, high in itertools.pairwise(sorted(cuts))]
    last = [
        index
        for axis, low, high in wanted
        for index, (name, start, end) in enumerate(dimensions)
        if name == axis and low <= start and end <= high
    ]
    first = [index for index in range(len(dimensions)) if index not in last]
    sizes = [end // start for _, start, end in dimensions]
    if devices and re.search("<=|T", devices):
        order = _iota(devices)
    else:
        order = _integers(devices) if devices else np.arange(math.prod(sizes))
    order = order.reshape(sizes).transpose(first + last)
    return order.reshape(-1, math.prod(sizes[index] for index in last))


def _integers(text: str) -> np.ndarray:
    return np.array([int(number) for number in re.findall(r"\d+", text)], dtype=int)
