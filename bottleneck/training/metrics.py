"""Scalars of a run: metrics.jsonl, TensorBoard, and what a person watching sees.

metrics.jsonl is only ever appended to; in a bucket, `metric_parts` stand for it. A run that was
killed and continued repeats the steps since its last checkpoint, with the same values; whoever
reads it takes the last line of a (step, split).
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import tensorboardX

from bottleneck.folders import is_remote, write_whole
from bottleneck.training.metric_parts import MetricParts
from bottleneck.training.run_folder import METRICS


class MetricsWriter:
    """Appends scalars to metrics.jsonl, each line whole when it is there, and to TensorBoard."""

    def __init__(self, workdir: Path, start_step: int | None):
        """`start_step` is where a run begins or continues; None: steps come in any order, which
        TensorBoard cannot show, and it gets nothing."""
        self._file: TextIO | MetricParts
        if is_remote(workdir):
            self._file = MetricParts(workdir)
        else:
            _drop_torn_line(workdir / METRICS)
            self._file = (workdir / METRICS).open("a", encoding="utf-8")
        self._board = None if start_step is None else _Board(workdir / "tensorboard", start_step)

    def write(self, step: int, split: str, scalars: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, "split": split, **scalars}) + "\n")
        if not isinstance(self._file, MetricParts):
            self._file.flush()
        if self._board is not None:
            self._board.add(step, split, scalars)

    def flush(self) -> None:
        """Returns when everything written is in the run folder."""
        self._file.flush()
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


class _Board:
    """TensorBoard's files; those of a folder elsewhere are written here and sent whole."""

    def __init__(self, folder: Path, start_step: int):
        self._folder = folder
        self._draft = tempfile.TemporaryDirectory() if is_remote(folder) else None
        self._writer = tensorboardX.SummaryWriter(
            self._draft.name if self._draft else str(folder), purge_step=start_step + 1
        )

    def add(self, step: int, split: str, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(f"{split}/{name}", value, step)

    def flush(self) -> None:
        self._writer.flush()
        self._send()

    def close(self) -> None:
        self._writer.close()
        self._send()
        if self._draft is not None:
            self._draft.cleanup()

    def _send(self) -> None:
        if self._draft is not None:
            for path in Path(self._draft.name).iterdir():
                write_whole(self._folder / path.name, path.read_bytes())


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
