"""Where a run's numbers go, one step late: files, TensorBoard and the person watching."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import jax
import numpy as np

from bottleneck.config import Config
from bottleneck.model.accounting import flops_per_token
from bottleneck.runs.metrics_writer import MetricsWriter, Stopwatch
from bottleneck.runs.probe import Probe
from bottleneck.terminal import Progress, console
from bottleneck.training.divergence import Watch
from bottleneck.training.optimizer import learning_rate_schedule
from bottleneck.training.step import Metrics

_T = TypeVar("_T")

_MOST_WAITING = 100  # steps that nobody has looked at


class Reporter:
    """Writes metrics when their step has surely ended, and books the time that is not training.

    The metrics of a step are read when the next one has been dispatched: the device always has
    work. `settle` reads what is still waiting, before a probe or a save. Every step is looked at,
    those between two lines of the log as well, for a loss or a gradient that is not finite.
    """

    def __init__(
        self,
        config: Config,
        workdir: Path,
        start: int,
        peak_flops: float,
        windows: Callable[[int], list[int]],
    ):
        """Opens the files of a run that begins at, or goes on from, step `start`.

        Args:
            peak_flops: of all devices together, a second.
            windows: what `Batches.windows` says of the batch that a step begins with.
        """
        self._config, self._workdir = config, workdir
        # One process of many writes; the consoles of the others are quiet.
        is_writer = jax.process_index() == 0
        self._writer = MetricsWriter(workdir, start) if is_writer else None
        self._watch = Watch(config.train.bad_steps, workdir if is_writer else None)
        self._windows = windows
        self._progress = Progress(
            "step", config.train.steps, start, unit="items", numbers="compiling"
        )
        self._schedule = learning_rate_schedule(config.optimizer, config.train.steps)
        self._flops_per_token = flops_per_token(
            config.model, config.train.sequence_length
        ).training(causal_halved=True)
        self._peak_flops = peak_flops
        self._stopwatch = Stopwatch()
        self._start, self._started = start, time.perf_counter()
        self._read_step, self._read_seconds = start, 0.0
        self._waiting: list[tuple[int, Metrics]] = []

    def _train_seconds(self) -> float:
        # Waiting for data is part of training: a slow disk shows in the tokens a second.
        booked = {k: s for k, s in self._stopwatch.seconds.items() if k != "data"}
        return time.perf_counter() - self._started - sum(booked.values())

    @contextmanager
    def booked(self, reason: str) -> Iterator[None]:
        """Books the time inside under a reason other than training."""
        with self._stopwatch.booked(reason):
            yield

    def waited(self, reason: str, items: Iterator[_T]) -> Iterator[_T]:
        """The items, the time until each is there booked under a reason."""
        while True:
            with self._stopwatch.booked(reason):
                item = next(items, None)
            if item is None:
                return
            yield item

    def train(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of a step just dispatched, and writes those that are due."""
        if self._waiting and (
            self._is_logged(self._waiting[-1][0]) or len(self._waiting) >= _MOST_WAITING
        ):
            self.settle()
        self._waiting.append((step, metrics))

    def settle(self) -> None:
        """Waits for the steps that were dispatched, looks at them and writes what is due.

        Raises: `Diverged` where as many in a row as `train.bad_steps` are not finite.
        """
        waiting, self._waiting = self._waiting, []
        for step, metrics in waiting:
            values = {name: float(metrics[name]) for name in ("loss", "grad_norm")}
            self._look(step, values, metrics["grad_norms"])
            if self._is_logged(step):
                self._log(step, values)

    @property
    def is_spoilt(self) -> bool:
        """Whether the last step that was looked at left parameters that are not finite."""
        return self._watch.in_a_row > 0 and not self._config.train.skip_bad_batches

    def end_spoilt(self) -> None:
        """Ends the run, whose last parameters are not finite: raises `Diverged`."""
        self._watch.stop()

    def _look(self, step: int, values: dict[str, float], grad_norms: dict[str, Any]) -> None:
        # Copied off the device where there is something to say.
        if np.isfinite([*values.values()]).all():
            self._watch.see(values)
            return
        facts = {
            "step": step,
            **values,
            "learning_rate": self._learning_rate(step),
            "windows": self._windows(step - 1),
            "grad_norms": {name: float(norm) for name, norm in grad_norms.items()},
        }
        self._watch.see(facts)
        if self._config.train.skip_bad_batches:
            self._write(step, "skipped", values)
            self.say(f"step {step:,}: loss {values['loss']}, its batch was skipped")

    def _is_logged(self, step: int) -> bool:
        return step % self._config.train.log_every == 0 or step == self._config.train.steps

    def _learning_rate(self, step: int) -> float:
        # The schedule counts updates from 0; this is the one that step `step` made.
        return float(self._schedule(step - 1))

    def _log(self, step: int, values: dict[str, float]) -> None:
        seconds = self._train_seconds()
        tokens = (step - self._read_step) * self._config.tokens_per_step
        rate = tokens / max(seconds - self._read_seconds, 1e-9)
        self._read_step, self._read_seconds = step, seconds
        values = values | {
            "learning_rate": self._learning_rate(step),
            "tokens_per_second": rate,
            "mfu": rate * self._flops_per_token / self._peak_flops,
        }
        self._write(step, "train", values)
        elapsed = time.perf_counter() - self._started
        steps_left = self._config.train.steps - step
        left = datetime.timedelta(seconds=round(elapsed / (step - self._start) * steps_left))
        numbers = (
            f"loss {values['loss']:.4f}  {rate:,.0f} tokens/s  MFU {values['mfu']:.1%}  {left} left"
        )
        self._progress.show(step, numbers)
        if not console.is_terminal:
            self.say(f"step {step:,}/{self._config.train.steps:,}  {numbers}")

    def flush(self) -> None:
        """Returns when all that there is to report is in the run folder."""
        self.settle()
        if self._writer is not None:
            self._writer.flush()

    def probe(self, step: int, probe: Probe) -> None:
        """Writes a probe's results and prints the headline numbers."""
        if self._writer is not None:
            self._writer.write_probe(step, step * self._config.tokens_per_step, probe)
        self.say(f"step {step:,}: {probe.headline()}")

    def _write(self, step: int, split: str, values: dict[str, float]) -> None:
        if self._writer is not None:
            tokens = step * self._config.tokens_per_step
            self._writer.write(step, split, {"tokens": tokens, **values})

    def say(self, line: str) -> None:
        self._progress.say(line)

    def finish(self, step: int) -> None:
        """Writes, and says, where the time of this process went."""
        total, booked = time.perf_counter() - self._started, self._stopwatch.seconds
        self._write(
            step, "time", {"seconds": total} | {f"{k}_seconds": s for k, s in booked.items()}
        )
        shares = [f"{reason} {seconds / total:.1%}" for reason, seconds in booked.items()]
        self.say(f"{self._workdir}: {total:,.0f} s, of which {', '.join(shares)}")

    def __enter__(self) -> Self:
        self._progress.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.__exit__(kind, error, trace)
        if self._writer is not None:
            self._writer.close()
