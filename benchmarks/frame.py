"""What all benchmarks share: contestants that take turns, and results by question and machine.

    seconds = interleaved({"ours": f, "theirs": g}, repetitions=5)
    report("question", [{"case": "small", **compared(seconds, "ours", "theirs")}], {"case": "what"})

A time alone says what else the machine did; so contestants take turns, and what counts is the ratio
within a turn. results/QUESTION.json keeps the newest result of each machine.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

Seconds = Mapping[str, Sequence[float]]


def interleaved(
    contestants: Mapping[str, Callable[[], Any]], repetitions: int
) -> dict[str, list[float]]:
    """Seconds of each contestant in each turn, after a call each that does not count.

    Each turn goes through them in the other direction than the one before. A contestant returns
    when its work is done.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()
    for turn in range(repetitions):
        for name in list(contestants)[:: 1 if turn % 2 == 0 else -1]:
            start = time.perf_counter()
            contestants[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(seconds: Seconds, ours: str, theirs: str) -> list[float]:
    """Of each turn, how long ours took as a share of theirs."""
    return [one / other for one, other in zip(seconds[ours], seconds[theirs], strict=True)]


def spread(values: Sequence[float], form: str = ".3g") -> str:
    """The median and the range: "0.52 (0.48 to 0.61)"."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def compared(seconds: Seconds, ours: str, theirs: str) -> dict[str, str]:
    """Cells of a row: the seconds of both, and ours over theirs turn by turn."""
    return {
        "ours": spread(seconds[ours]),
        "theirs": spread(seconds[theirs]),
        "ratio": spread(ratios(seconds, ours, theirs)),
    }


def report(
    question: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]
) -> dict[str, Any]:
    """Prints a table, puts it with the machine, versions and day into its file, and returns it.

    Args:
        rows: cells by the name of their column; values beyond the columns are kept and not shown.
        columns: what heads each column, by its name.
    """
    entry = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "columns": dict(columns),
        "rows": [dict(row) for row in rows],
    }
    print(markdown(entry))
    path = RESULTS / f"{question}.json"
    by_machine = json.loads(path.read_text()) if path.exists() else {}
    by_machine[entry["machine"]["name"]] = entry
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(by_machine, indent=1) + "\n")
    return entry


def markdown(entry: Mapping[str, Any]) -> str:
    """The table of a result."""
    columns = entry["columns"]
    lines = [f"| {' | '.join(columns.values())} |", "| --- " * len(columns) + "|"]
    for row in entry["rows"]:
        lines.append(f"| {' | '.join(str(row.get(name, '–')) for name in columns)} |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """CPU, cores for us, bytes of memory, GPU where there is one, and a name of it all."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts: dict[str, Any] = {"cpu": _cpu(), "cores": cores, "memory_bytes": _memory()}
    if (gpu := gpu_name()) is not None:
        facts["gpu"] = gpu
    return {"name": f"{facts['cpu']}, {cores} cores" + (f", {gpu}" if gpu else ""), **facts}


def gpu_name() -> str | None:
    """The first CUDA GPU that its driver knows of."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(answer.stdout.splitlines()), "").strip() or None


def versions() -> dict[str, str]:
    """Of Python and of the libraries that are installed."""
    found = {"python": platform.python_version()}
    for name in ("jax", "jaxlib", "torch"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
