"""The lines of metrics.jsonl in a bucket, which has no append: numbered parts.

A part is replaced whole as it grows, and left alone once it is large or its process has ended. So
nothing written is ever at risk, and what a kill loses is at most FLUSH_SECONDS of lines since the
last checkpoint, which the run that continues repeats.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from bottleneck.folders import write_whole
from bottleneck.training.run_folder import metric_parts, part_name

FLUSH_SECONDS = 30.0
PART_BYTES = 2**20


class MetricParts:
    """A file of lines, opened for appending."""

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
        write_whole(self._workdir / part_name(self._number), content)
        self._n_written = len(self._lines)
        if len(content) >= PART_BYTES:
            self._number, self._lines, self._n_written = self._number + 1, [], 0

    def close(self) -> None:
        self.flush()
