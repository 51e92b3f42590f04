"""The demo in a process of its own, for benchmarks that ask how it spends its time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]


class Started(NamedTuple):
    """Of a process: wall seconds to its first step, and the whole of its processor seconds."""

    first_step: float
    processor: float


def _command(workdir: Path, *overrides: str) -> list[str]:
    return [
        *(sys.executable, "-m", "bottleneck", "train", "--config=configs/nano.py"),
        f"--workdir={workdir}",
        *(f"--config.{override}" for override in overrides),
    ]


def prepare() -> None:
    """Sees to it that the demo's tokens are there."""
    subprocess.run(
        [sys.executable, "-m", "bottleneck", "prepare", "--config=configs/nano.py"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )


def time_record(*overrides: str) -> dict[str, Any]:
    """The `time` record of the demo, trained to its end."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder, "run")
        subprocess.run(_command(workdir, *overrides), cwd=ROOT, check=True, capture_output=True)
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return next(r for r in map(json.loads, reversed(lines)) if r["split"] == "time")


def start(compile_cache: Path) -> Started:
    """Starts the demo for one step, with compiled programs kept in a folder."""
    overrides = (
        "train.steps=1",
        "optimizer.warmup_steps=1",
        f"compute.compile_cache={compile_cache}",
    )
    with tempfile.TemporaryDirectory() as folder:
        before, began = os.times(), time.perf_counter()
        process = subprocess.Popen(
            _command(Path(folder, "run"), *overrides), cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        first = None
        for line in process.stderr:
            if first is None and line.startswith("step 1/1"):
                first = time.perf_counter() - began
        if process.wait() or first is None:
            raise SystemExit(f"the demo ended with {process.returncode} before its first step")
        after = os.times()
    used = sum(after[2:4]) - sum(before[2:4])  # of children
    return Started(first, used)
