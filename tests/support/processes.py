"""Waiting for moments in the life of real processes."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

HANGING = 600  # seconds; no outcome depends on it, it only ends a test that hangs


def comes(moment: Callable[[], bool], process: subprocess.Popen) -> bool:
    """Waits for a moment; returns False if the process ends before it."""
    deadline = time.monotonic() + HANGING
    while not moment():
        if process.poll() is not None:
            return moment()
        assert time.monotonic() < deadline, "the moment never came"
        time.sleep(0.002)
    return True


def await_moment(moment: Callable[[], bool], process: subprocess.Popen) -> None:
    """Waits for a moment; the process must still be alive then."""
    if not comes(moment, process):
        raise AssertionError(f"it ended before the moment came: {process.communicate()}")


def is_in_use(folder: Path) -> bool:
    """Returns True once a process has put its name into the folder's lock."""
    lock = folder / ".lock"
    return lock.exists() and lock.read_text() != ""
