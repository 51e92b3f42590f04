"""SIGTERM, the notice that a machine is about to be taken away: the run saves, then ends.

Spot machines, maintenance events, Kubernetes and SLURM all give it, seconds to minutes before.
"""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any, Self

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 128 + signal.SIGTERM  # of a run that ended so, as a shell says it


class Notice:
    """Tells in a `with` block whether SIGTERM has come; there it does not end the program.

    Of many processes one may be told alone: jax then picks a step that none has passed, the same on
    all of them.
    """

    def __init__(self) -> None:
        self._is_given = False
        self._before: Any = None

    def has_come(self, step: int) -> bool:
        """Whether to stop after this step; to be asked after every step, by every process."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._is_given

    def _take(self, number: int, frame: FrameType | None) -> None:
        self._is_given = True

    def __enter__(self) -> Self:
        if jax.process_count() == 1:  # else jax listens
            self._before = signal.signal(signal.SIGTERM, self._take)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._before)
