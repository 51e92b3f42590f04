"""A sweep: one config, and the fields that each of its cells overrides.

A config file's `get_sweep()` returns a list of overrides: dicts from a field's dotted name to its
value. Make such lists with `product` and `zipped`, join them with `+`, and filter them with a
comprehension. A cell trains into an ordinary run folder.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bottleneck.config import Config, parse
from bottleneck.errors import UserError, suggestion
from bottleneck.model.accounting import ParameterCount, count_parameters, flops_per_token
from bottleneck.sections import shown

_LONGEST = 200  # bytes of a name; disks take 255, and logs and locks add suffixes

Overrides = dict[str, Any]  # dotted field name → value


def product(*parts: Mapping[str, Iterable[Any]] | Sequence[Overrides]) -> list[Overrides]:
    """Returns every combination of the parts; the last varies fastest.

    Args:
        parts: dicts from field names to values, or lists of overrides.
    """
    lists = [
        [dict(zip(part, values, strict=True)) for values in itertools.product(*part.values())]
        if isinstance(part, Mapping)
        else part
        for part in parts
    ]
    return [_merged(cells) for cells in itertools.product(*lists)]


def zipped(fields: Mapping[str, Sequence[Any]]) -> list[Overrides]:
    """Returns one cell for each position in the lists of values, like `zip`."""
    lengths = {name: len(values) for name, values in fields.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise UserError(f"zipped fields must have equally many values: {listed}")
    return [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)]


def _merged(cells: Sequence[Overrides]) -> Overrides:
    merged: Overrides = {}
    for cell in cells:
        if twice := merged.keys() & cell.keys():
            raise UserError(f"config.{min(twice)} varies in two parts of a product")
        merged |= cell
    return merged


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    index: int
    name: str  # of its run folder; names the fields that distinguish it
    config: Config

    @property
    def parameters(self) -> ParameterCount:
        return count_parameters(self.config.model)

    @property
    def tokens(self) -> int:
        """T: training tokens."""
        return self.config.train.steps * self.config.tokens_per_step

    @property
    def flops(self) -> float:
        """FLOPs of the whole training, forward and backward, causal attention halved."""
        of_token = flops_per_token(self.config.model, self.config.train.sequence_length)
        return self.tokens * of_token.training(causal_halved=True)


def expand(fields: dict[str, Any], sweep: Any) -> list[Cell]:
    """Returns the validated cells of a sweep.

    Args:
        fields: the config that all cells override, as nested plain values.
        sweep: the result of `get_sweep`.
    Raises:
        UserError: it is not a list of overrides, a cell is not a valid config, or two are equal.
    """
    if not isinstance(sweep, list) or not sweep or not all(isinstance(c, dict) for c in sweep):
        raise UserError("get_sweep() must return a list of dicts, such as product() makes")
    for index, name in ((i, name) for i, cell in enumerate(sweep) for name in cell):
        if not isinstance(name, str):
            raise UserError(
                f"cell {index}: {shown(name)} is not a field; a field's name is a string"
            )
    cells = []
    first: dict[Any, Cell] = {}
    for index, (name, overrides) in enumerate(zip(_names(sweep), sweep, strict=True)):
        try:
            cell = Cell(index, name, parse(_overridden(fields, overrides)))
        except UserError as error:
            raise UserError(f"cell {index}, {name}: {error}") from error
        cells.append(cell)
        # Some disks ignore the case of names.
        folder = cell.name.casefold()
        for same in (first.setdefault(cell.config, cell), first.setdefault(folder, cell)):
            if same is not cell:
                are = "the same" if same.config == cell.config else "named alike"
                raise UserError(f"cells {same.index} and {cell.index} are {are}, {cell.name}")
    return cells


def _overridden(fields: dict[str, Any], overrides: Overrides) -> dict[str, Any]:
    changed = copy.deepcopy(fields)
    for name, value in overrides.items():
        *groups, key = name.split(".")
        section: Any = changed
        for group in groups:
            section = section.get(group) if isinstance(section, dict) else None
        if not isinstance(section, dict) or key not in section:
            known = [*section] if isinstance(section, dict) else [*changed]
            raise UserError(f"config.{name} is not a field; {suggestion(key, known)}")
        section[key] = value
    return changed


def _names(sweep: Sequence[Overrides]) -> list[str]:
    """Returns a name for each cell, of the fields that vary and do not follow from earlier ones.

    For example, leaves out the number of heads if it follows from the width.
    """

    def n_different(names: list[str]) -> int:
        return len({tuple(_text(cell, name) for name in names) for cell in sweep})

    telling: list[str] = []
    for field in dict.fromkeys(itertools.chain.from_iterable(sweep)):
        if n_different([*telling, field]) > n_different(telling):
            telling.append(field)
    leaves = [field.rpartition(".")[2] for field in telling]
    shown_as = {
        f: f if leaves.count(leaf) > 1 else leaf for f, leaf in zip(telling, leaves, strict=True)
    }
    return [
        _short(",".join(f"{shown_as[field]}={_text(cell, field)}" for field in telling)) or "run"
        for cell in sweep
    ]


def _short(name: str) -> str:
    """Returns the name; replaces the end of a long one with a hash."""
    if len(name.encode()) <= _LONGEST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return name.encode()[: _LONGEST - 13].decode(errors="ignore") + "-" + digest


def _text(cell: Overrides, field: str) -> str:
    """Returns a field's value as part of a file name; "base" if the cell does not set it."""
    if field not in cell:
        return "base"
    value = cell[field]
    items = value if isinstance(value, tuple | list) else [value]
    texts = [item if isinstance(item, str) else shown(item) for item in items]
    return re.sub(r"[^\w.+-]+", "-", "+".join(texts))
