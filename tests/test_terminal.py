"""Nothing that is printed is obeyed, by rich or by the terminal, whatever its name is."""

import io

import pytest
import rich.progress
from rich.table import Table
from rich.text import Text

from bottleneck.terminal import PlainConsole, column

NAMES = ["[red]x[/]", "[/]", "[link=file:///etc]x[/link]", "a:smile:b", "\\[b]", "[@click=f]x"]
# Red, the title of the window, the clipboard, a cleared line, the same in one 8-bit character.
ORDERS = ["\x1b[31mx", "\x1b]0;x\x07", "\x1b]52;c;eA==\x07", "\x1b[2K\r", "\x9b31m", "\u202ex"]


def printed(*what):
    file = io.StringIO()
    console = PlainConsole(file=file, width=100, force_terminal=True, highlight=False)
    for each in what:
        console.print(each)
    return file.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_names_are_printed_as_they_are(name):
    assert printed(f"the run {name} is there") == f"the run {name} is there\n"
    table = Table(box=None, show_header=False, pad_edge=False, title=name, caption=name)
    table.add_row(name)
    lines = printed(table).splitlines()
    assert len(lines) == 3 and all(name in line for line in lines)


@pytest.mark.parametrize("order", ORDERS)
def test_what_a_terminal_would_obey_is_spelled_out(order):
    table = Table(box=None, show_header=False)
    table.add_row(order)
    for text in (printed(f"run {order}"), printed(table)):
        assert all(c.isprintable() or c == "\n" for c in text)
        assert repr(order)[1:-1] in text


def test_lines_stay_lines_and_styles_are_shown():
    assert printed("a\nb") == "a\nb\n"
    assert printed(Text("a", "bold")) == "\x1b[1ma\x1b[0m\n"


@pytest.mark.parametrize("name", NAMES)
def test_a_bar_shows_names_as_they_are(name):
    bar = rich.progress.Progress()
    bar.add_task("", name=name)
    [task] = bar.tasks
    assert column("{task.fields[name]}").render(task).plain == name
