"""SIGTERM and Ctrl-C: the run saves the current step, then ends; a second Ctrl-C ends it at once.

Spot machines, maintenance events, Kubernetes and SLURM all send SIGTERM seconds to minutes before
they take a machine away.
"""

import os
import signal
from collections.abc import Callable

import jax
from jax.experimental import multihost_utils

from bottleneck.signals import EXIT_CODES, Listener, end_at_once


class Notice(Listener):
    """Records signals in a `with` block, where they do not end the program.

    If one process of many gets a SIGTERM, jax picks a step that no process has passed, the same
    for all. Ctrl-C is forwarded as a SIGTERM.
    """

    def __init__(self, say: Callable[[str], None] = lambda line: None):
        """`say` tells the user that a Ctrl-C was heard, perhaps from another thread."""
        # With many processes, jax itself listens to SIGTERM.
        taken = EXIT_CODES if jax.process_count() == 1 else (signal.SIGINT,)
        super().__init__(self._record, taken)
        self._say = say
        self.signal = signal.SIGTERM  # the first one received
        self._received: list[int] = []

    def has_come(self, step: int) -> bool:
        """Returns True to stop after this step; every process must ask after every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return bool(self._received)

    def _record(self, number: int) -> None:
        if number == signal.SIGINT:
            if number in self._received:
                end_at_once(number, "stopped at once; the same command resumes from the last save")
            self._say("saving after this step; press Ctrl-C again to stop at once")
        if not self._received:
            self.signal = signal.Signals(number)
            if jax.process_count() > 1 and number == signal.SIGINT:
                os.kill(os.getpid(), signal.SIGTERM)
        self._received.append(number)
