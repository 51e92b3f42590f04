"""The table of TPU slices, slices.toml: how to order each, its hosts and compiler flags.

`python -m bottleneck.parallel.slices v5e:4x4 [SLICES]` prints the row as assignments for a shell.
It must run without this package's dependencies.
"""

import math
import shlex
import sys
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bottleneck.errors import UserError

_TABLE = Path(__file__).with_name("slices.toml")


@dataclass(frozen=True)
class Slice:
    """One row: a topology of a chip."""

    chip: str
    topology: str  # in chips, such as "4x4"
    chips: int
    hosts: int
    accelerator_type: str | None  # None if the chip has no TPU VMs
    runtime: str | None
    gke_accelerator: str
    gke_machine: str

    @property
    def chips_per_host(self) -> int:
        return self.chips // self.hosts


@dataclass(frozen=True)
class Flag:
    """A flag of the TPU compiler, and its reason."""

    name: str  # without dashes
    value: str
    reason: str


def slice_of(accelerator: str) -> Slice:
    """Returns the row of "CHIP:TOPOLOGY"; raises `UserError` if the table has none."""
    table = _read()
    name, _, topology = accelerator.partition(":")
    if name not in table["chips"]:
        known = ", ".join(table["chips"])
        raise UserError(f"{accelerator}: {_TABLE.name} has no chip {name!r}; known are {known}")
    chip = table["chips"][name]
    if topology not in chip["hosts"]:
        raise UserError(
            f"{accelerator}: {_TABLE.name} has no topology {topology!r} of {name}; "
            f"it has {', '.join(chip['hosts'])}"
        )
    chips = math.prod(map(int, topology.split("x")))
    hosts = chip["hosts"][topology]
    words = {"chips": chips, "cores": 2 * chips, "chips_per_host": chips // hosts}
    accelerator_type = chip.get("accelerator_type")
    return Slice(
        chip=name,
        topology=topology,
        chips=chips,
        hosts=hosts,
        accelerator_type=accelerator_type and accelerator_type.format(**words),
        runtime=chip.get("runtime"),
        gke_accelerator=chip["gke_accelerator"],
        gke_machine=chip["gke_machine"].format(**words),
    )


def all_slices() -> list[Slice]:
    """Returns every row of the table."""
    chips = _read()["chips"]
    return [slice_of(f"{name}:{shape}") for name, chip in chips.items() for shape in chip["hosts"]]


def flags_of(chip: str, n_slices: int = 1) -> list[Flag]:
    """Returns the compiler's flags for a number of slices of a chip."""
    return [
        Flag(flag["name"], flag["value"], flag["reason"])
        for flag in _read()["flags"]
        if chip in flag["chips"] and n_slices >= flag.get("from_slices", 1)
    ]


def _read() -> dict[str, Any]:
    table = tomllib.loads(_TABLE.read_text(encoding="utf-8"))
    return {"flags": table.pop("flags", []), "chips": table}


def _as_shell(row: Slice, n_slices: int) -> str:
    flags = " ".join(f"--{flag.name}={flag.value}" for flag in flags_of(row.chip, n_slices))
    values = asdict(row) | {"chips_per_host": row.chips_per_host, "libtpu_flags": flags}
    return "\n".join(f"{k.upper()}={shlex.quote(str(v or ''))}" for k, v in values.items())


if __name__ == "__main__":
    try:
        print(_as_shell(slice_of(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1))
    except UserError as error:
        sys.exit(f"error: {error}")
