"""Scalars of a run: metrics.jsonl, TensorBoard, and what a person watching sees.

metrics.jsonl is only ever appended to. A run that was killed and continued repeats the steps since
its last checkpoint, with the same values; whoever reads it takes the last line of a (step, split).
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tensorboardX

from bottleneck.training.run_folder import METRICS


class MetricsWriter:
    """Appends scalars to metrics.jsonl, each line whole when it is there, and to TensorBoard."""

    def __init__(self, workdir: Path, start_step: int | None):
        """`start_step` is where a run begins or continues; None: steps come in any order, which
        TensorBoard cannot show, and it gets nothing."""
        path = workdir / METRICS
        _drop_torn_line(path)
        self._file = path.open("a", encoding="utf-8")
        self._board = None
        if start_step is not None:
            self._board = tensorboardX.SummaryWriter(
                str(workdir / "tensorboard"), purge_step=start_step + 1
            )

    def write(self, step: int, split: str, scalars: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, "split": split, **scalars}) + "\n")
        self._file.flush()
        if self._board is None:
            return
        for name, value in scalars.items():
            self._board.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def _drop_torn_line(path: Path) -> None:
    """Cuts off what a kill left of a line, so that the next one starts on its own."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


class Stopwatch:
    """Books wall time under a reason: "train", "probe", "checkpoint", …"""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def booked(self, reason: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[reason] += time.perf_counter() - start
