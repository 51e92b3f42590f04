"""Reports of a run's numbers, one step late, to files, TensorBoard and the terminal."""

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
from bottleneck.training.schedules import learning_rate_schedule
from bottleneck.training.step import Metrics

_T = TypeVar("_T")

_MOST_WAITING = 100  # steps whose metrics are unread


class Reporter:
    """Writes metrics once their step has ended, and books the time that is not training.

    Metrics are read after the next step has been dispatched, so the device always has work. Before
    a probe or a save, `settle` reads all that are left. It checks every step, logged or not, for a
    loss or a gradient that is not finite.
    """

    def __init__(
        self,
        config: Config,
        workdir: Path,
        start: int,
        peak_flops: float,
        windows: Callable[[int], list[int]],
    ):
        """Opens the files of a run that starts or resumes at step `start`.

        Args:
            peak_flops: FLOP/s of all devices together.
            windows: `Batches.windows`, from a step to the windows of its batch.
        """
        self._config, self._workdir = config, workdir
        # Only one process writes; the consoles of the others are quiet.
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
        # Waiting for data counts as training: a slow disk shows in the tokens per second.
        booked = {k: s for k, s in self._stopwatch.seconds.items() if k != "data"}
        return time.perf_counter() - self._started - sum(booked.values())

    @contextmanager
    def booked(self, reason: str) -> Iterator[None]:
        """Books the time of the block under a reason other than training."""
        with self._stopwatch.booked(reason):
            yield

    def waited(self, reason: str, items: Iterator[_T]) -> Iterator[_T]:
        """Yields the items, and books the time spent waiting for each."""
        while True:
            with self._stopwatch.booked(reason):
                item = next(items, None)
            if item is None:
                return
            yield item

    def train(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of a step just dispatched, and writes earlier ones that are due."""
        if self._waiting and (
            self._is_logged(self._waiting[-1][0]) or len(self._waiting) >= _MOST_WAITING
        ):
            self.settle()
        self._waiting.append((step, metrics))

    def settle(self) -> None:
        """Waits for the dispatched steps, checks them and writes the metrics that are due.

        Raises:
            Diverged: if `train.bad_steps` steps in a row are not finite.
        """
        waiting, self._waiting = self._waiting, []
        for step, metrics in waiting:
            values = {name: float(metrics[name]) for name in ("loss", "grad_norm")}
            self._look(step, values, metrics["grad_norms"])
            if self._is_logged(step):
                self._log(step, values)

    @property
    def is_spoilt(self) -> bool:
        """Returns True if the last step checked left parameters that are not finite."""
        return self._watch.in_a_row > 0 and not self._config.train.skip_bad_batches

    def end_spoilt(self) -> None:
        """Raises `Diverged`, because the last parameters are not finite."""
        self._watch.stop()

    def _look(self, step: int, values: dict[str, float], grad_norms: dict[str, Any]) -> None:
        # The norms are copied off the device only if the step is bad.
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
        # The schedule counts updates from 0.
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
        """Returns once all metrics are in the run folder."""
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
        """Writes and prints how this process spent its time."""
        total, booked = time.perf_counter() - self._started, self._stopwatch.seconds
        self._write(
            step, "time", {"seconds": total} | {f"{k}_seconds": s for k, s in booked.items()}
        )
        shares = [f"{reason} {seconds / total:.1%}" for reason, seconds in booked.items()]
        self.say(f"{self._workdir}: {total:,.0f} s: {', '.join(shares)}")

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
