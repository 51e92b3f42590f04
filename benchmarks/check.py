"""Whether the train step has fallen behind: its speed over PyTorch's, against a recorded ratio.

python benchmarks/check.py            # exit code 1 where it is 25 % behind, twice
python benchmarks/check.py --record   # on a quiet machine: today's ratio is the one to keep

No time is compared with one of another machine or day: only ratios of contestants that take turns.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import frame

RECORDED = Path(__file__).parent / "recorded_ratio.json"
MOST_BEHIND = 0.25
PEER = "eager"


def measure() -> float:
    """Our tokens a second over the peer's on the demo's model: the median of many turns."""
    import train_step

    case = train_step.CASES[0]
    found = train_step.compare(case, ["ours", PEER], "cpu", 9, 1.0)
    return statistics.median(found[PEER]["ours_over_this"])


def verdict(recorded: float, measured: Callable[[], float]) -> tuple[bool, str]:
    """Whether all is well, and a line that says so; what fails is measured once more."""
    least = (1 - MOST_BEHIND) * recorded
    for attempt in ("", "again, "):
        ratio = measured()
        line = f"{attempt}{ratio:.2f} of PyTorch's speed; recorded is {recorded:.2f}"
        if ratio >= least:
            return True, line
    return False, f"{line}, and at least {least:.2f} is wanted"


def main() -> int:
    """Returns 1 where the train step is too far behind, 2 where no ratio is recorded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="keep today's ratio")
    if parser.parse_args().record:
        facts = {
            "ratio": measure(),
            "date": datetime.date.today().isoformat(),
            "machine": frame.machine(),
            "versions": frame.versions(),
        }
        RECORDED.write_text(json.dumps(facts, indent=1) + "\n")
        return 0
    if not RECORDED.exists():
        print(f"no ratio is recorded yet: {Path(__file__).name} --record", file=sys.stderr)
        return 2
    is_well, line = verdict(json.loads(RECORDED.read_text())["ratio"], measure)
    print(line)
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
