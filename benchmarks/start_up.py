"""From the command to the first step of the demo, in real processes: with nothing compiled yet, and
with what the start before compiled.

python benchmarks/start_up.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import demo_run
import frame

TURNS = 3


def main() -> None:
    """Prints wall seconds to the first step, processor seconds of the process, and ratios."""
    demo_run.prepare()
    found: dict[str, list[demo_run.Started]] = {"first": [], "second": []}
    for _ in range(TURNS):
        with tempfile.TemporaryDirectory() as folder:
            for starts in found.values():
                starts.append(demo_run.start(Path(folder)))
    rows = []
    for what, name in (("to the first step", "first_step"), ("of the processor", "processor")):
        seconds = {k: [getattr(one, name) for one in starts] for k, starts in found.items()}
        rows.append({"case": what, **frame.compared(seconds, "second", "first")})
    columns = {
        "case": "seconds",
        "theirs": "first start",
        "ours": "second start",
        "ratio": "second / first",
    }
    frame.report("start_up", rows, columns)


if __name__ == "__main__":
    main()
