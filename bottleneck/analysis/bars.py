"""What a person who watches a computation sees: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

import rich.progress

from bottleneck.terminal import PlainConsole, column

_SECONDS_BETWEEN_LINES = 30.0  # where there is no terminal


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows how far the block has come; it is given a function to call with the amount done."""
    console = PlainConsole(stderr=True)
    started = spoke = time.monotonic()
    with rich.progress.Progress(
        column(what),
        rich.progress.BarColumn(),
        rich.progress.TaskProgressColumn(),
        rich.progress.TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(what, total=total)

        def advance(done: int) -> None:
            nonlocal spoke
            bar.update(task, completed=done)
            now = time.monotonic()
            if not console.is_terminal and now - spoke > _SECONDS_BETWEEN_LINES:
                spoke = now
                share = done / max(total, 1)
                print(f"{what}: {share:.0%} after {now - started:.0f} s", file=sys.stderr)

        yield advance
