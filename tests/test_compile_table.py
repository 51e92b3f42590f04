"""The table of slices: what is published is whole and fits, and its yardstick holds today."""

import importlib.util
import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
table = runpy.run_path(str(ROOT / "benchmarks/compile_table.py"))


@pytest.fixture(scope="module")
def results():
    return json.loads(table["RESULTS"].read_text())["rows"]


def test_every_row_was_compiled_and_fits(results):
    assert [table["Row"](**result["row"]) for result in results] == table["rows"]()
    assert all(result["report"]["fits"] for result in results)
    *_, yardstick = results
    assert table["temporaries"](yardstick["report"]) <= table["YARDSTICK_TEMPORARIES"]


def test_the_readme_shows_what_was_compiled(results):
    assert table["markdown"](results) in (ROOT / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the [tpu] extra")
def test_a_step_at_410m_needs_no_more_memory_than_the_yardstick_allows():
    report = table["compile_row"](table["YARDSTICK"])["report"]
    assert report["fits"]
    assert table["temporaries"](report) <= table["YARDSTICK_TEMPORARIES"]
