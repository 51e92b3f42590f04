"""Scratch copies of the repository, in which the tests of a mutant run."""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path


class Copies:
    """Scratch copies of the repository, one for each process, and the programs they compiled."""

    def __init__(self, repository: Path, folder: Path, n_copies: int):
        self._repository = repository
        self._folder = folder
        self._free: queue.Queue[Path] = queue.Queue()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._is_stopped = False
        ignored = shutil.ignore_patterns(
            ".git", ".venv*", "runs", "build", "dist", "__pycache__", ".*_cache", ".hypothesis"
        )
        for i in range(n_copies):
            copy = folder / f"copy-{i}" / "repository"
            shutil.copytree(repository, copy, ignore=ignored)
            self._free.put(copy)

    def run(
        self,
        tests: Sequence[str],
        *,
        change: tuple[str, str] | None = None,
        limit: float | None = None,
        programs: str,
    ) -> tuple[int | None, float, str]:
        """Runs tests in a copy.

        Args:
            change: a file and the source that it has meanwhile.
            limit: seconds after which the tests are stopped.
            programs: "write" keeps what jax compiles, "read" only uses it, "none" does neither.
                Half a program, left by tests that were stopped, would fail all later ones.
        Returns:
            pytest's exit code, None if it was stopped; seconds; the end of what it printed.
        """
        copy = self._free.get()
        name = hashlib.sha256("\n".join(tests).encode()).hexdigest()[:16]
        environment = {
            "PYTHONPATH": str(copy),
            "JAX_COMPILATION_CACHE_DIR": str(self._folder / "programs" / name),
            "JAX_ENABLE_COMPILATION_CACHE": "false" if programs == "none" else "true",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0" if programs == "write" else "1e9",
            "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "none",
            # A file that changes twice a second would be taken for the one before.
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        options = ["-x", "-q", "-p", "no:cacheprovider", f"--basetemp={copy.parent / 'temporary'}"]
        try:
            if self._is_stopped:
                raise SystemExit("stopped")
            if change:
                (copy / change[0]).write_text(change[1])
            start = time.monotonic()
            with tempfile.TemporaryFile() as output:
                process = subprocess.Popen(
                    [sys.executable, "-m", "pytest", *options, *tests],
                    cwd=copy,
                    env=os.environ | environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                self._running.add(process)
                try:
                    code = process.wait(limit)
                except subprocess.TimeoutExpired:
                    code = None
                finally:
                    _kill(process)
                    self._running.discard(process)
                if self._is_stopped:
                    raise SystemExit("stopped")
                seconds = time.monotonic() - start
                output.seek(0)
                return code, seconds, output.read().decode(errors="replace")[-4000:]
        finally:
            if change:
                shutil.copy2(self._repository / change[0], copy / change[0])
            self._free.put(copy)

    def stop(self) -> None:
        """Kills all tests that run, and starts no more."""
        self._is_stopped = True
        for process in list(self._running):
            _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and those that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
