"""Tables of a sweep's cells: their cost and their progress."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich.console
import rich.live
from rich.table import Table
from rich.text import Text

from bottleneck.runs import metrics as metric_lines
from bottleneck.sweep.cells import Cell
from bottleneck.sweep.runner import Places, State, state_of

_REFRESH_SECONDS = 2.0
_COLOURS: dict[State, str] = {
    "complete": "green",
    "failed": "red",
    "running": "cyan",
    "begun": "yellow",
    "not begun": "dim",
}


def cost_table(cells: Sequence[Cell]) -> Table:
    """Returns the cost of each cell, and the total."""
    table = _grid("index", "cell", "parameters", "tokens", "FLOPs")
    for cell in cells:
        table.add_row(
            str(cell.index),
            cell.name,
            f"{cell.parameters.total:,}",
            f"{cell.tokens:,}",
            f"{cell.flops:.2e}",
        )
    tokens, flops = (sum(getattr(cell, name) for cell in cells) for name in ("tokens", "flops"))
    table.add_section()
    table.add_row("", f"{len(cells)} cells", "", f"{tokens:,}", f"{flops:.2e}")
    return table


def status_table(cells: Sequence[Cell], root: Path) -> Table:
    """Returns the state of each cell, and its newest numbers."""
    table = _grid("index", "cell", "state", "step", "validation loss", "tokens/s")
    counts: dict[str, int] = {}
    for cell in cells:
        places = Places(root, cell.name)
        state = state_of(places)
        counts[state] = counts.get(state, 0) + 1
        newest = _newest(places.workdir)
        train, evaluation = newest.get("train", {}), newest.get("eval", {})
        step = max((line["step"] for line in newest.values()), default=0)
        table.add_row(
            str(cell.index),
            cell.name,
            Text(state, style=_COLOURS[state]),
            f"{step:,}/{cell.config.train.steps:,}",
            f"{evaluation['loss']:.4f}" if evaluation else "",
            f"{train['tokens_per_second']:,.0f}" if train else "",
        )
    table.caption = ", ".join(f"{n} {state}" for state, n in counts.items())
    return table


def watch(cells: Sequence[Cell], root: Path, console: rich.console.Console) -> None:
    """Shows `status_table` until every cell is complete or failed; once, without a terminal."""
    if not console.is_terminal:
        console.print(status_table(cells, root))
        return
    with rich.live.Live(
        status_table(cells, root), console=console, auto_refresh=False, vertical_overflow="visible"
    ) as live:
        while any(
            state_of(Places(root, cell.name)) not in ("complete", "failed") for cell in cells
        ):
            time.sleep(_REFRESH_SECONDS)
            live.update(status_table(cells, root), refresh=True)


def _grid(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", caption_justify="left")
    for heading in headings:
        is_name = heading in ("cell", "state")
        table.add_column(
            heading,
            justify="left" if is_name else "right",
            overflow="fold",
            no_wrap=heading != "cell",  # so that a narrow terminal folds names, not numbers
        )
    return table


def _newest(workdir: Path) -> dict[str, dict[str, Any]]:
    """Returns the last row of each split."""
    return {row["split"]: row for row in metric_lines.read(workdir)}
