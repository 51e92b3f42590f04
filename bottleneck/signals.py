"""The end of the process: by SIGINT or SIGTERM, by a reader that goes away, or by itself.

After `end_quietly`, a signal ends the process at once, with one line and a shell's exit code. No
handler raises: an interrupted import fails in its own way, and a library may swallow the exception.
Ending at once is safe, because unfinished files have no name yet. A block that must act first takes
the signals with a `Listener`.
"""

import atexit
import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from types import FrameType
from typing import Any, NoReturn, Self

EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
READER_GONE = 141  # as after SIGPIPE
_CANNOT_WRITE = 2

_LINES = {signal.SIGTERM: "stopped by SIGTERM", signal.SIGINT: "stopped by Ctrl-C"}
_SHOW_CURSOR = "\x1b[?25h\n"  # a progress bar hides it

_ending = threading.Lock()  # held by the thread that ends the process
_is_held = False  # the main thread waits until the listening one has ended the process
_line_is_out = False
_exit_code = 1  # after an uncaught exception
_scratch: set[str] = set()


class Listener:
    """Calls `heard(number)` for each signal during a `with` block, from another thread.

    Python runs handlers between its own instructions: a main thread that waits for the device runs
    them late, and merges two signals into one. The pipe gets one byte at once for each signal.
    """

    def __init__(
        self,
        heard: Callable[[int], None],
        numbers: Collection[int] = tuple(EXIT_CODES),
        handler: Callable[[int, FrameType | None], None] = lambda number, frame: None,
    ):
        """Takes the signals `numbers`, except those that the process ignored from its start."""
        self._heard, self._numbers, self._handler = heard, numbers, handler
        self._before: dict[int, Any] = {}

    def tell(self, number: int) -> None:
        """Tells the thread of a signal; 0 ends the thread."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._sender, bytes([number]))

    def _listen(self) -> None:
        while (numbers := os.read(self._receiver, 64)) and 0 not in numbers:
            for number in numbers:
                if number in self._before:
                    self._heard(number)

    def __enter__(self) -> Self:
        self._receiver, self._sender = os.pipe()
        os.set_blocking(self._sender, False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        self._wakeup = signal.set_wakeup_fd(self._sender, warn_on_full_buffer=False)
        for number in self._numbers:
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN:  # SIG_IGN under nohup, or in the background
                self._before[number] = before
                signal.signal(number, self._handler)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        self.tell(0)
        self._thread.join()
        os.close(self._sender)
        os.close(self._receiver)


def end_quietly() -> None:
    """Makes signals end the process at once, and `leave` the last call of any process."""
    atexit.register(leave)  # registered first, called last

    def hold(number: int, frame: FrameType | None) -> None:
        """Stops the main thread; a second signal ends the process here."""
        global _is_held
        if _line_is_out:
            os._exit(EXIT_CODES[signal.Signals(number)])
        if not _is_held:
            _is_held = True
            listener.tell(number)  # in case other code replaced the pipe
            while True:
                time.sleep(60)

    listener = Listener(end_at_once, handler=hold)
    listener.__enter__()
    os.register_at_fork(after_in_child=_forget)


def _forget() -> None:
    """Restores default signals in a forked child, which has no listening thread."""
    atexit.unregister(leave)
    signal.set_wakeup_fd(-1)
    for number in EXIT_CODES:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def end_at_once(number: int, line: str | None = None) -> NoReturn:
    """Ends the process with one line on standard error, whatever its other threads do."""
    global _line_is_out
    with _ending:
        text = f"{line or _LINES[signal.Signals(number)]}\n"
        with contextlib.suppress(OSError):
            if os.isatty(2):
                text = _SHOW_CURSOR + text
            # A full pipe would block; without standard error, 2 may be any file.
            if sys.stderr is not None and _events(2, select.POLLOUT) & select.POLLOUT:
                os.write(2, text.encode())
            silent = os.open(os.devnull, os.O_WRONLY)
            for descriptor in (1, 2):  # other threads run for another moment
                os.dup2(silent, descriptor)
        _line_is_out = True
        if _scratch:
            import shutil

            for folder in _scratch:
                shutil.rmtree(folder, ignore_errors=True)
        os._exit(EXIT_CODES[signal.Signals(number)])


@contextlib.contextmanager
def removed(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Removes a folder at the end of the block, or when a signal ends the process."""
    import shutil  # so that `end_at_once` finds it imported

    name = os.fspath(folder)
    _scratch.add(name)
    try:
        yield
    finally:
        shutil.rmtree(name, ignore_errors=True)
        _scratch.discard(name)


def set_exit_code(code: int) -> None:
    """Sets the exit code for the end of the process, after threads and exit hooks."""
    global _exit_code
    _exit_code = code


def leave(code: int | None = None) -> NoReturn:
    """Flushes the output and ends the process, by default with the exit code that was set."""
    code = _exit_code if code is None else code
    for stream in (sys.stdout, sys.stderr):
        if stream is None or stream.closed:
            continue
        try:
            stream.flush()
        except BrokenPipeError:
            code = code or READER_GONE
        except OSError as error:
            code = code or _CANNOT_WRITE
            with contextlib.suppress(OSError):
                os.write(2, f"error: cannot write {stream.name}: {error.strerror}\n".encode())
    with _ending:  # never released
        os._exit(code)


def reader_is_gone() -> bool:
    """Returns True if nobody reads standard output or standard error any more."""
    return any(_events(descriptor) & select.POLLERR for descriptor in (1, 2))


def _events(descriptor: int, asked: int = 0) -> int:
    poll = select.poll()
    poll.register(descriptor, asked)
    return sum(events for _, events in poll.poll(0))
