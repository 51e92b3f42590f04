"""The frame of the benchmarks: turns, ratios within a turn, and results by machine."""

import json
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch, tmp_path):
    """The modules, with their results in a folder of the test's own."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("frame", "check", "results_page", "compile_table"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import check
    import frame
    import results_page

    monkeypatch.setattr(frame, "RESULTS", tmp_path)
    yield {"frame": frame, "check": check, "page": results_page}
    for name in ("frame", "check", "results_page", "compile_table"):
        sys.modules.pop(name, None)


def test_contestants_take_turns_and_a_machine_that_slows_down_changes_no_ratio(
    benchmarks, monkeypatch
):
    now, order = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def takes(name, seconds):
        def run():
            order.append(name)
            # Each turn, of two runs, is slower than the one before.
            now[0] += seconds * (1 + (len(order) - 1) // 2)

        return run

    frame = benchmarks["frame"]
    seconds = frame.interleaved({"ours": takes("ours", 1.0), "theirs": takes("theirs", 2.0)}, 3)
    assert order[2:] == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert seconds["ours"] == [2.0, 3.0, 4.0]
    assert frame.ratios(seconds, "ours", "theirs") == [0.5, 0.5, 0.5]


def test_a_result_replaces_that_of_its_machine_alone(benchmarks, monkeypatch):
    frame, page = benchmarks["frame"], benchmarks["page"]
    for name, value in (("here", 1), ("there", 2), ("here", 3)):
        monkeypatch.setattr(frame, "machine", lambda name=name: {"name": name})
        frame.report("speed", [{"x": value}], {"x": "s"})
    kept = json.loads((frame.RESULTS / "speed.json").read_text())
    assert {name: entry["rows"] for name, entry in kept.items()} == {
        "here": [{"x": 3}],
        "there": [{"x": 2}],
    }
    text = page.page(frame.RESULTS)
    assert "## speed" in text and "| 3 |" in text and "| 1 |" not in text


def test_the_page_shows_every_result_that_is_kept(benchmarks):
    written = (BENCHMARKS / "RESULTS.md").read_text()
    assert written == benchmarks["page"].page(BENCHMARKS / "results")


@pytest.mark.parametrize(
    ("measured", "is_well"),
    [([1.0], True), ([0.76], True), ([0.6, 0.9], True), ([0.6, 0.74], False)],
)
def test_a_train_step_fails_where_it_is_a_quarter_behind_twice(benchmarks, measured, is_well):
    left = iter(measured)
    assert benchmarks["check"].verdict(1.0, lambda: next(left))[0] is is_well
    assert list(left) == []
