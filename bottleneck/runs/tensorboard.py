"""The scalars of a run in the files that TensorBoard reads.

Written in this thread. tensorboardX's own SummaryWriter has another write, which ends without a
word when the disk is full; its queue then fills up, and the run waits for ever.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from bottleneck.storage.folders import is_remote, write_whole

_FLUSH_SECONDS = 10.0


class TensorBoard:
    """Event files in a folder; those of a folder elsewhere are written here and sent whole."""

    def __init__(self, folder: Path, start_step: int):
        """Scalars of steps after `start_step` that were written before are no longer shown."""
        self._folder = folder
        self._draft = tempfile.TemporaryDirectory() if is_remote(folder) else None
        here = Path(self._draft.name) if self._draft else folder
        here.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(here / "events"))
        purge = SessionLog(status=SessionLog.START)
        self._write(Event(step=start_step + 1, session_log=purge))
        self._last_flush = time.monotonic()

    def add(self, step: int, split: str, scalars: dict[str, float]) -> None:
        values = [
            Summary.Value(tag=f"{split}/{name}", simple_value=value)
            for name, value in scalars.items()
        ]
        self._write(Event(step=step, summary=Summary(value=values)))
        if time.monotonic() - self._last_flush >= _FLUSH_SECONDS and self._draft is None:
            self.flush()

    def flush(self) -> None:
        """Returns when all is in the folder."""
        self._writer.flush()
        self._send()
        self._last_flush = time.monotonic()

    def close(self) -> None:
        self._writer.close()
        self._send()
        if self._draft is not None:
            self._draft.cleanup()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)

    def _send(self) -> None:
        if self._draft is not None:
            for path in Path(self._draft.name).iterdir():
                write_whole(self._folder / path.name, path.read_bytes())
