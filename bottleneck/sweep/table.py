"""Tables of a sweep's cells: their cost and their progress."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import rich.console
import rich.live
from rich.table import Table
from rich.text import Text

from bottleneck.runs import metrics as metric_lines
from bottleneck.sweep.cells import Cell
from bottleneck.sweep.runner import Places, State, state_of

_REFRESH_SECONDS = 2.0
_COLOURS = {"complete": "green", "failed": "red", "running": "cyan", "begun": "yellow"}


def cost_table(cells: Sequence[Cell]) -> Table:
    """Returns the cost of each cell, and the total."""
    table = _grid("index", "cell", "parameters", "tokens", "FLOPs")
    for cell in cells:
        numbers = f"{cell.parameters.total:,}", f"{cell.tokens:,}", f"{cell.flops:.2e}"
        table.add_row(str(cell.index), cell.name, *numbers)
    tokens, flops = (sum(getattr(cell, name) for cell in cells) for name in ("tokens", "flops"))
    table.add_section()
    table.add_row("", f"{len(cells)} cells", "", f"{tokens:,}", f"{flops:.2e}")
    return table


def status_table(cells: Sequence[Cell], root: Path) -> Table:
    """Returns the state of each cell, and its newest numbers."""
    table = _grid("index", "cell", "state", "step", "validation loss", "tokens/s")
    counts: Counter[State] = Counter()
    for cell in cells:
        places = Places(root, cell.name)
        state = state_of(places)
        counts[state] += 1
        newest = {row["split"]: row for row in metric_lines.read(places.workdir)}
        train, evaluation = newest.get("train", {}), newest.get("eval", {})
        step = max((line["step"] for line in newest.values()), default=0)
        table.add_row(
            str(cell.index),
            cell.name,
            Text(state, style=_COLOURS.get(state, "dim")),
            f"{step:,}/{cell.config.train.steps:,}",
            f"{evaluation['loss']:.4f}" if evaluation else "",
            f"{train['tokens_per_second']:,.0f}" if train else "",
        )
    table.caption = ", ".join(f"{n} {state}" for state, n in counts.items())
    return table


def watch(cells: Sequence[Cell], root: Path, console: rich.console.Console) -> None:
    """Shows `status_table` until every cell is complete or failed; once, without a terminal."""
    table = status_table(cells, root)
    if not console.is_terminal:
        console.print(table)
        return
    all_places = [Places(root, cell.name) for cell in cells]
    with rich.live.Live(
        table, console=console, auto_refresh=False, vertical_overflow="visible"
    ) as live:
        while not {state_of(places) for places in all_places} <= {"complete", "failed"}:
            time.sleep(_REFRESH_SECONDS)
            live.update(status_table(cells, root), refresh=True)


def _grid(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", caption_justify="left")
    for heading in headings:
        table.add_column(
            heading,
            justify="left" if heading in ("cell", "state") else "right",
            overflow="fold",
            no_wrap=heading != "cell",  # so that a narrow terminal folds names, not numbers
        )
    return table
