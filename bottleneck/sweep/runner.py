"""Trains the cells of a sweep: one in this process, or all in processes of their own.

ROOT/logs/ has three files for each cell. NAME.log is the output of its process. NAME.lock is held
during training, so two processes never train one cell. NAME.failed is the reason of its last error;
a killed cell leaves none, and continues. If ROOT is in a bucket, logs and locks are on this machine
and locks of other machines are unknown.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, STDOUT, Popen
from typing import Literal
from urllib.parse import quote

from bottleneck.errors import UserError
from bottleneck.runs import folder as run_folder
from bottleneck.signals import EXIT_CODES, Listener
from bottleneck.storage.folders import is_locked, is_remote
from bottleneck.storage.workspace import held
from bottleneck.sweep.cells import Cell
from bottleneck.terminal import console

State = Literal["complete", "failed", "running", "begun", "not begun"]

_POLL_SECONDS = 0.1
_GPUS = "CUDA_VISIBLE_DEVICES"


class Stopped(Exception):
    """Raised after a signal ended a sweep and the cells in training."""

    def __init__(self, number: int):
        super().__init__(f"stopped by signal {number}")
        self.exit_code = EXIT_CODES[signal.Signals(number)]


@dataclass(frozen=True)
class Places:
    """The files of a cell in the folder of its sweep."""

    root: Path
    name: str

    @property
    def workdir(self) -> Path:
        return self.root / self.name

    @property
    def log(self) -> Path:
        return self._on_this_machine / f"{self.name}.log"

    @property
    def lock(self) -> Path:
        return self._on_this_machine / f"{self.name}.lock"

    @property
    def _on_this_machine(self) -> Path:
        if not is_remote(self.root):
            return self.root / "logs"
        return Path("~/.cache/bottleneck/sweeps").expanduser() / quote(str(self.root), safe="")

    @property
    def failure(self) -> Path:
        return self.root / "logs" / f"{self.name}.failed"


def state_of(places: Places) -> State:
    """Returns the state of a cell; "begun" is one that was stopped and can continue."""
    if run_folder.is_complete(places.workdir):
        return "complete"
    if is_locked(places.lock):
        return "running"
    if places.failure.exists():
        return "failed"
    return "begun" if (places.workdir / run_folder.CONFIG).exists() else "not begun"


def alone(places: Places) -> contextlib.AbstractContextManager[None]:
    """Holds the lock of a cell, after a wait if another process trains it."""
    return held(
        places.lock,
        lambda holder: console.print(f"{places.name}: waiting for {holder}, which trains it"),
    )


@contextlib.contextmanager
def failure_recorded(places: Places) -> Iterator[None]:
    """Records the reason if the block raises; deletes an earlier record."""
    places.failure.unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or "no message"
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        places.failure.parent.mkdir(parents=True, exist_ok=True)
        run_folder.write_text(places.failure, f"{kind}{reason}\n")
        raise


def run_all(
    cells: Sequence[Cell],
    root: Path,
    command: Callable[[Cell], Sequence[str]],
    *,
    parallel: int,
    retry: bool,
) -> bool:
    """Trains the incomplete cells, `parallel` at a time; returns True if all are complete then.

    Each process gets its share of the GPUs in CUDA_VISIBLE_DEVICES, if set. Stopping this process
    stops them. If it is killed, they finish, and the next run of the sweep waits for them.

    Args:
        command: the command line that trains a cell.
        retry: tries failed cells again.
    Raises: `Stopped` after SIGINT or SIGTERM; the cells have saved and ended by then.
    """

    def say(cell: Cell, event: str) -> None:
        console.print(f"[{cell.index}/{len(cells)}] {cell.name}: {event}")

    waiting: deque[Cell] = deque()
    places = {cell: Places(root, cell.name) for cell in cells}
    n_complete = 0
    for cell in cells:
        state = state_of(places[cell])
        n_complete += state == "complete"
        if state == "failed" and not retry:
            say(cell, f"failed before: {_reason(places[cell])}; --retry tries it again")
        elif state != "complete":
            waiting.append(cell)
    if n_complete:
        console.print(f"{n_complete} of {len(cells)} cells are complete already")
    slots = _shares(os.environ.get(_GPUS), parallel)
    running: dict[Popen[bytes], tuple[Cell, dict[str, str], float]] = {}
    stops: list[int] = []  # signals received
    with Listener(stops.append):
        try:
            while (waiting or running) and not stops:
                while waiting and slots:
                    cell, slot = waiting.popleft(), slots.pop(0)
                    process = _start(command(cell), places[cell].log, slot)
                    running[process] = (cell, slot, time.monotonic())
                    say(cell, "started")
                time.sleep(_POLL_SECONDS)
                for process in [p for p in running if p.poll() is not None]:
                    cell, slot, started = running.pop(process)
                    slots.append(slot)
                    if run_folder.is_complete(places[cell].workdir):
                        say(cell, f"complete after {time.monotonic() - started:,.0f} s")
                    else:
                        say(cell, f"failed: {_reason(places[cell], process.returncode)}")
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait()
    if stops:
        raise Stopped(stops[0])
    return all(run_folder.is_complete(place.workdir) for place in places.values())


def _start(command: Sequence[str], log: Path, slot: dict[str, str]) -> Popen[bytes]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return Popen(command, stdin=DEVNULL, stdout=file, stderr=STDOUT, env=os.environ | slot)


def _shares(gpus: str | None, n: int) -> list[dict[str, str]]:
    """Returns additions to the environment of n processes: equal shares of the GPUs, in order."""
    if not gpus:
        return [{} for _ in range(n)]
    names = gpus.split(",")
    if len(names) % n:
        raise UserError(
            f"--parallel={n} is not allowed; it must divide the {len(names)} GPUs of {_GPUS}={gpus}"
        )
    share = len(names) // n
    return [{_GPUS: ",".join(names[i * share : (i + 1) * share])} for i in range(n)]


def _reason(places: Places, code: int | None = None) -> str:
    if places.failure.exists():
        return f"{places.failure.read_text(encoding='utf-8').strip()} (see {places.log})"
    if code in EXIT_CODES.values():
        return "stopped and saved; run the sweep again to continue it"
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}; run the sweep again to continue it"
    return f"exit code {code} (see {places.log})"
