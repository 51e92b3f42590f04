"""SIGTERM and Ctrl-C: the run saves the step at hand, then ends; a second Ctrl-C ends it at once.

SIGTERM is the notice that a machine is about to be taken away: spot machines, maintenance events,
Kubernetes and SLURM all give it, seconds to minutes before.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import TracebackType
from typing import Self

import jax
from jax.experimental import multihost_utils

from bottleneck.signals import EXIT_CODES, Listener, end_at_once

_AT_ONCE = "stopped at once; the same command goes on from the last save"


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
        self._interrupts = 0

    def has_come(self, step: int) -> bool:
        """Whether to stop after this step; to be asked after every step, by every process."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._is_given

    def _heard(self, number: int) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                end_at_once(number, _AT_ONCE)
            self._say("saving after this step; Ctrl-C once more stops at once")
        if not self._is_given:
            self.signal = signal.Signals(number)
            self._is_given = True
            if jax.process_count() > 1 and number == signal.SIGINT:
                os.kill(os.getpid(), signal.SIGTERM)

    def __enter__(self) -> Self:
        # With many processes jax listens to SIGTERM itself.
        taken = EXIT_CODES if jax.process_count() == 1 else (signal.SIGINT,)
        self._listener = Listener(self._heard, taken)
        self._listener.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.__exit__(kind, error, trace)
