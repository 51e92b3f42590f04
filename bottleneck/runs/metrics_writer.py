"""The scalars of a run, written to metrics.jsonl and TensorBoard.

metrics.jsonl is append-only. Buckets cannot append, so there numbered parts replace it; see
`bottleneck.runs.metrics` for the lines.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bottleneck.runs import metrics as metric_lines
from bottleneck.runs.folder import METRICS, METRICS_PART, PROBE, metric_parts
from bottleneck.runs.probe import Probe
from bottleneck.runs.tensorboard import TensorBoard
from bottleneck.storage.folders import is_remote, write_whole, writing

FLUSH_SECONDS = 30.0
PART_BYTES = 2**20


class MetricsWriter:
    """Appends scalars to metrics.jsonl, each line at once, and to TensorBoard."""

    def __init__(self, workdir: Path, start_step: int | None):
        """Opens the files for appending, from the step at which the run starts or resumes.

        None: steps come in any order. TensorBoard cannot show those and gets nothing.
        """
        self._lines: _Lines | MetricParts
        with writing(workdir / METRICS):
            self._lines = MetricParts(workdir) if is_remote(workdir) else _Lines(workdir / METRICS)
        board = workdir / "tensorboard"
        with writing(board):
            self._board = None if start_step is None else TensorBoard(board, start_step)
        self._workdir = workdir

    def write(self, step: int, split: str, scalars: dict[str, float]) -> None:
        with writing(self._workdir / METRICS):
            self._lines.write(metric_lines.written(step, split, scalars))
        if self._board is not None:
            with writing(self._workdir / "tensorboard"):
                self._board.add(step, split, scalars)

    def write_probe(self, step: int, tokens: int, probe: Probe) -> None:
        """Writes a probe's arrays, then its scalars, so a step with both lines is complete."""
        probes = self._workdir / "probes"
        probes.mkdir(exist_ok=True)
        probe.save(probes / PROBE.format(step))
        evaluation = {"tokens": tokens, "loss": probe.loss, "loss_se": probe.loss_se}
        self.write(step, "eval", evaluation)
        self.write(step, "probe", {"tokens": tokens, **probe.scalars()})

    def flush(self) -> None:
        """Returns when everything written is on the disk or in the bucket."""
        with writing(self._workdir / METRICS):
            self._lines.flush()
        if self._board is not None:
            with writing(self._workdir / "tensorboard"):
                self._board.flush()

    def close(self) -> None:
        with writing(self._workdir):
            self._lines.close()
            if self._board is not None:
                self._board.close()


class _Lines:
    """A file of lines that is only appended to."""

    def __init__(self, path: Path):
        content = path.read_bytes() if path.exists() else b""
        self._file = path.open("ab", buffering=0)  # a buffer would retry what a full disk refused
        self._file.truncate(content.rfind(b"\n") + 1)  # a kill may have torn the last line

    def write(self, line: str) -> None:
        left = memoryview(line.encode())
        while left:
            left = left[self._file.write(left) :]

    def flush(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class MetricParts:
    """The same as numbered parts, each about `PART_BYTES`; the last one is rewritten at a flush."""

    def __init__(self, workdir: Path, clock: Callable[[], float] = time.monotonic):
        self._workdir, self._clock = workdir, clock
        parts = metric_parts(workdir)
        self._number = 1 + max(parts) if parts else 0
        self._lines: list[str] = []
        self._n_written, self._last_flush = 0, clock()

    def write(self, line: str) -> None:
        self._lines.append(line)
        if self._clock() - self._last_flush >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Returns when every line is in the bucket."""
        self._last_flush = self._clock()
        if self._n_written == len(self._lines):
            return
        content = "".join(self._lines).encode()
        write_whole(self._workdir / METRICS_PART.format(self._number), content)
        self._n_written = len(self._lines)
        if len(content) >= PART_BYTES:
            self._number, self._lines, self._n_written = self._number + 1, [], 0

    def close(self) -> None:
        self.flush()


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
