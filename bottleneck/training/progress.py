"""What a person watching a run sees: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import datetime
from types import TracebackType
from typing import Self

import rich.progress

from bottleneck.terminal import PlainConsole, column

console = PlainConsole(stderr=True, highlight=False, soft_wrap=True)


class Progress:
    """Steps done, with the newest numbers."""

    def __init__(self, start: int, steps: int, what: str = "step", numbers: str = "compiling"):
        """Begins at `start` of `steps`; `what` is done one by one."""
        self._steps = steps
        self._bar = rich.progress.Progress(
            column(what + " {task.completed:,}/{task.total:,}"),
            rich.progress.BarColumn(bar_width=24),
            column("{task.fields[numbers]}"),
            console=console,
            disable=console.quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=steps, completed=start, numbers=numbers)

    def advance(self, step: int, metrics: dict[str, float], seconds_left: float) -> None:
        """Shows the newest metrics of training."""
        left = datetime.timedelta(seconds=round(seconds_left))
        numbers = (
            f"loss {metrics['loss']:.4f}  {metrics['tokens_per_second']:,.0f} tokens/s  "
            f"MFU {metrics['mfu']:.1%}  {left} left"
        )
        self.show(step, numbers)
        if not console.is_terminal:
            self.say(f"step {step:,}/{self._steps:,}  {numbers}")

    def show(self, done: int, numbers: str) -> None:
        """Moves the bar, where there is one."""
        self._bar.update(self._task, completed=done, numbers=numbers)

    def say(self, line: str) -> None:
        """A line that stays."""
        self._bar.console.print(line)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
