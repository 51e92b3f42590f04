"""Output for a person at a terminal: plain text, short counts, and progress bars.

Names of runs, paths, errors and settings may come from strangers. To rich, "[/]" is an error and
":x:" an emoji; to a terminal, an escape sequence is a command. So text is printed literally.
"""

import time
from typing import Any, Literal, NoReturn, Self

import rich.console
from rich import progress as bars
from rich.text import Text

from bottleneck.errors import spelled_out

_SECONDS_BETWEEN_LINES = 30.0  # of progress without a terminal


class PlainConsole(rich.console.Console):
    """A console that prints strings literally; ask for colour with styles and `Text`."""

    def __init__(self, **options: Any):
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **how: Any) -> Text:
        lines = (spelled_out(line) for line in text.split("\n"))
        return super().render_str("\n".join(lines), **how)

    def on_broken_pipe(self) -> NoReturn:
        """Raises the current error; rich would end the process with code 1."""
        raise


# Progress and remarks go to standard error; standard output holds only results.
console = PlainConsole(stderr=True, highlight=False, soft_wrap=True)


def count(number: float | None) -> str:
    """Returns a count to three digits, such as "3.28 M"; a dash for None."""
    if number is None:
        return "–"
    number = float(f"{number:.3g}")  # first, so that 999,999 is 1.00 M
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:#.3g}".rstrip(".") + f" {unit}"
    return f"{number:g}"


class Progress:
    """Progress of a long computation: a bar on a terminal, otherwise a line now and then.

    Use it in a `with` block, and call `show` as the work advances. "share" and "bytes" bars
    disappear when the block ends; without a terminal they print the share done every 30 seconds.
    "items" bars stay, with the newest results, `numbers`, beside them.
    """

    def __init__(
        self,
        what: str,
        total: int,
        start: int = 0,
        *,
        unit: Literal["share", "items", "bytes"] = "share",
        numbers: str = "",
    ):
        """Starts at `start` of `total`; `what` names the work, or one item of it."""
        self._what, self._total, self._unit = what, max(total, 1), unit
        self._started = self._spoke = time.monotonic()
        name, done = _text(what), _text(what + " {task.completed:,}/{task.total:,}")
        bar, left = bars.BarColumn(), bars.TimeRemainingColumn()
        columns: dict[str, list[bars.ProgressColumn]] = {
            "share": [name, bar, bars.TaskProgressColumn(), left],
            "bytes": [name, bar, bars.DownloadColumn(), bars.TransferSpeedColumn(), left],
            "items": [done, bars.BarColumn(bar_width=24), _text("{task.fields[numbers]}")],
        }
        self._bar = bars.Progress(
            *columns[unit],
            console=console,
            transient=unit != "items",
            disable=console.quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task(what, total=total, completed=start, numbers=numbers)

    def show(self, done: int, numbers: str = "") -> None:
        """Moves the bar to `done`; without a terminal, prints a line if the last one is old."""
        self._bar.update(self._task, completed=done, numbers=numbers)
        now = time.monotonic()
        is_due = self._unit != "items" and now - self._spoke > _SECONDS_BETWEEN_LINES
        if is_due and not console.is_terminal:
            self._spoke = now
            share, seconds = done / self._total, now - self._started
            self.say(f"{self._what}: {share:.0%} after {seconds:.0f} s")

    def say(self, line: str) -> None:
        """Prints a line that stays, above the bar."""
        self._bar.console.print(line)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()


def _text(text: str) -> bars.TextColumn:
    """Returns a column of a bar; {task.…} is filled in."""
    return bars.TextColumn(text, markup=False)
