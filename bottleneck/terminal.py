"""What a person at a terminal is shown: text as it is, with nothing in it that is obeyed.

Names of runs, paths, errors and settings may come from strangers. To rich, "[/]" in one is an error
and ":x:" a picture; to a terminal, an escape sequence is an order.
"""

from __future__ import annotations

from typing import Any

import rich.console
import rich.progress
from rich.text import Text

from bottleneck.errors import spelled_out


class PlainConsole(rich.console.Console):
    """A console that takes no string for markup; colour is asked for by styles and `Text`."""

    def __init__(self, **options: Any):
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **how: Any) -> Text:
        lines = (spelled_out(line) for line in text.split("\n"))
        return super().render_str("\n".join(lines), **how)


def column(text: str) -> rich.progress.TextColumn:
    """A column of a progress bar; {task.…} in its text is filled in."""
    return rich.progress.TextColumn(text, markup=False)
