"""SIGTERM and Ctrl-C: the run saves the current step, then ends; a second Ctrl-C ends it at once.

Spot machines, maintenance events, Kubernetes and SLURM all send SIGTERM seconds to minutes before
they take a machine away.
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

_AT_ONCE = "stopped at once; the same command resumes from the last save"


class Notice:
    """Records signals in a `with` block, where they do not end the program.

    If one process of many gets a SIGTERM, jax picks a step that no process has passed, the same
    for all. Ctrl-C is forwarded as a SIGTERM.
    """

    def __init__(self, say: Callable[[str], None] = lambda line: None):
        """`say` tells the user that a Ctrl-C was heard, perhaps from another thread."""
        self._say = say
        self.signal = signal.SIGTERM  # the one received
        self._is_given = False
        self._interrupts = 0

    def has_come(self, step: int) -> bool:
        """Returns True to stop after this step; every process must ask after every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._is_given

    def _heard(self, number: int) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                end_at_once(number, _AT_ONCE)
            self._say("saving after this step; press Ctrl-C again to stop at once")
        if not self._is_given:
            self.signal = signal.Signals(number)
            self._is_given = True
            if jax.process_count() > 1 and number == signal.SIGINT:
                os.kill(os.getpid(), signal.SIGTERM)

    def __enter__(self) -> Self:
        # With many processes, jax itself listens to SIGTERM.
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
