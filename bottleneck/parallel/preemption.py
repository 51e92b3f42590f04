"""SIGTERM and Ctrl-C: the run saves the step at hand, then ends; a second Ctrl-C ends it at once.

SIGTERM is the notice that a machine is about to be taken away: spot machines, maintenance events,
Kubernetes and SLURM all give it, seconds to minutes before.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

import jax
from jax.experimental import multihost_utils

# Of a run that a signal ended, as a shell says it.
EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


_interrupted = threading.Event()  # by a Ctrl-C that came while it was remembered


@contextlib.contextmanager
def remembered() -> Iterator[None]:
    """In the block a Ctrl-C raises `KeyboardInterrupt`, and again as a `Notice` begins.

    For a library may swallow the first, and the program would go on.
    """

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        _interrupted.set()
        raise KeyboardInterrupt

    _interrupted.clear()
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        _interrupted.clear()


class Notice:
    """Tells in a `with` block whether a signal has come; there it does not end the program.

    Of many processes one may be told alone: jax then picks a step that none has passed, the same on
    all of them; that is for SIGTERM, and Ctrl-C is passed on as one.
    """

    def __init__(self, say: Callable[[str], None] = lambda line: None):
        """`say` tells the user that a Ctrl-C was heard, and may be called from another thread."""
        self._say = say
        self.signal = signal.SIGTERM  # the one that came
        self._is_given = False
        self._before: dict[int, Any] = {}

    def has_come(self, step: int) -> bool:
        """Whether to stop after this step; to be asked after every step, by every process."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._is_given

    def _listen(self) -> None:
        """Takes the signals as they come, whatever the main thread waits for."""
        interrupts = 0
        while numbers := self._receiver.recv(64):
            interrupts += numbers.count(signal.SIGINT)
            if interrupts > 1:
                _end_at_once()
            if interrupts and signal.SIGINT in numbers:
                self._say("saving after this step; Ctrl-C once more stops at once")
            if not self._is_given and set(numbers) & set(EXIT_CODES):
                self.signal = signal.Signals(next(n for n in numbers if n in EXIT_CODES))
                self._is_given = True
                if jax.process_count() > 1 and self.signal == signal.SIGINT:
                    os.kill(os.getpid(), signal.SIGTERM)

    def __enter__(self) -> Self:
        # Python calls handlers between its own instructions: a main thread that waits for the
        # device would call them late, and take two signals for one. The other end of these sockets
        # gets a byte at once for each.
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        # With many processes jax listens to SIGTERM itself.
        taken = EXIT_CODES if jax.process_count() == 1 else (signal.SIGINT,)
        self._before = {number: signal.signal(number, _ignore) for number in taken}
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        if _interrupted.is_set():
            self.__exit__(None, None, None)
            raise KeyboardInterrupt
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._sender.close()
        self._thread.join()
        self._receiver.close()


def _ignore(number: int, frame: FrameType | None) -> None:
    pass


def _end_at_once() -> NoReturn:
    """What is on disk stays valid: whatever is half written has no name yet."""
    if sys.stderr.isatty():
        sys.stderr.write("\x1b[?25h\n")  # the cursor, which a progress bar hides
    sys.stderr.write("stopped at once; the same command goes on from the last save\n")
    sys.stderr.flush()
    os._exit(EXIT_CODES[signal.SIGINT])
