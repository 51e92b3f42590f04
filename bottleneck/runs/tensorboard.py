"""The scalars of a run in TensorBoard's event files.

This thread writes them. A SummaryWriter has its own thread, which dies silently on a full disk;
then its queue fills up and the run hangs.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from bottleneck.storage.folders import is_remote, write_whole

_FLUSH_SECONDS = 10.0
_VERSION = "brain.Event:2"  # of the format; the first record of a file


class TensorBoard:
    """Event files in a folder; for a remote folder they are written here and sent whole."""

    def __init__(self, folder: Path, start_step: int):
        """Hides scalars of steps after `start_step` that an earlier process wrote."""
        self._folder = folder
        self._draft = tempfile.TemporaryDirectory() if is_remote(folder) else None
        here = Path(self._draft.name) if self._draft else folder
        here.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder by name.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._writer = RecordWriter((here / name).open("wb"))
        self._write(Event(file_version=_VERSION))
        self._write(Event(step=start_step + 1, session_log=SessionLog(status=SessionLog.START)))
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
        """Returns when everything is in the folder."""
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
        self._writer.write(event.SerializeToString())

    def _send(self) -> None:
        if self._draft is not None:
            for path in Path(self._draft.name).iterdir():
                write_whole(self._folder / path.name, path.read_bytes())
