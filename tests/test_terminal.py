"""Nothing that is printed is obeyed, by rich or by the terminal, whatever its name is."""

import io

import pytest
from rich.table import Table
from rich.text import Text

from bottleneck import terminal
from bottleneck.terminal import PlainConsole, Progress, count

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
def test_a_bar_shows_names_as_they_are(name, monkeypatch):
    file = io.StringIO()
    console = PlainConsole(file=file, width=100, force_terminal=True, color_system=None)
    monkeypatch.setattr(terminal, "console", console)
    with Progress(name, 2, unit="items", numbers=name) as progress:
        progress.show(1, name)
        progress.say(name)
    lines = file.getvalue().splitlines()
    assert any(line.count(name) == 2 and "1/2" in line for line in lines)
    assert any(name in line and "1/2" not in line for line in lines)


def test_without_a_terminal_progress_is_a_line_every_half_minute(monkeypatch):
    file, now = io.StringIO(), [0.0]
    monkeypatch.setattr(terminal, "console", PlainConsole(file=file, width=100))
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with Progress("reading", 200) as progress:
        for now[0], done in ((10.0, 10), (31.0, 50), (50.0, 80), (62.0, 100)):
            progress.show(done)
    assert file.getvalue() == "reading: 25% after 31 s\nreading: 50% after 62 s\n"


def test_counts_have_three_digits_and_a_unit():
    numbers = (0, 999, 1000, 98_765, 3_276_800, 999_999, 1e12, None)
    assert [count(n) for n in numbers] == [
        *("0", "999", "1.00 k", "98.8 k", "3.28 M", "1.00 M", "1.00 T", "–")
    ]
