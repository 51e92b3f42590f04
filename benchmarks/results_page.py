"""RESULTS.md from the JSON files of results/: python benchmarks/results_page.py"""

from __future__ import annotations

import json
from pathlib import Path

import compile_table
import frame

PAGE = Path(__file__).parent / "RESULTS.md"


def page(results: Path) -> str:
    """All results: a section a question, and in it one a machine."""
    parts = ["# Results\n\nWritten by `make bench` from the files in `results/`.\n"]
    for path in sorted(results.glob("*.json")):
        content = json.loads(path.read_text())
        if path.name == compile_table.RESULTS.name:
            what, day = "slices of TPUs that are not there", content["date"]
            body = _dated(what, day, content["versions"], compile_table.markdown(content["rows"]))
        else:
            # A file that is not of the frame's form has a table of its own.
            entries = content.values()
            if not all(isinstance(one, dict) and "machine" in one for one in entries):
                continue
            body = "\n".join(
                _dated(one["machine"]["name"], one["date"], one["versions"], frame.markdown(one))
                for one in entries
            )
        parts.append(f"## {path.stem}\n\n{body}")
    return "\n".join(parts)


def _dated(what: str, day: str, versions: dict[str, str], table: str) -> str:
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{what}, {day}, {libraries}:\n\n{table}\n"


if __name__ == "__main__":
    PAGE.write_text(page(frame.RESULTS))
