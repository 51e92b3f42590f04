"""Reports of a run's numbers, one step late, to files, TensorBoard and the terminal."""

import datetime
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import jax
import numpy as np

from bottleneck.config import Config
from bottleneck.model.accounting import flops_per_token
from bottleneck.runs.metrics_writer import MetricsWriter, Stopwatch
from bottleneck.runs.probe import Probe
from bottleneck.terminal import Progress, console
from bottleneck.training.divergence import stop_diverged
from bottleneck.training.schedules import learning_rate_schedule
from bottleneck.training.step import Metrics

_T = TypeVar("_T")

_MOST_WAITING = 100  # steps whose metrics are unread


class Reporter:
    """Writes metrics once their step has ended, and books the time that is not training.

    Metrics are read after the next step has been dispatched, so the device always has work. Before
    a probe or a save, `settle` reads all that are left.
    """

    def __init__(
        self,
        config: Config,
        workdir: Path,
        start: int,
        peak_flops: float,
        windows: Callable[[int], list[int]],
    ):
        """Opens the files of a run from step `start`; `peak_flops` are of all devices together."""
        self._config, self._workdir = config, workdir
        # Only one process writes; the consoles of the others are quiet.
        is_writer = jax.process_index() == 0
        self._writer = MetricsWriter(workdir, start) if is_writer else None
        self._diagnosis_folder = workdir if is_writer else None
        self._bad: list[dict[str, Any]] = []  # diagnoses of the bad steps up to the last one
        self._windows = windows
        steps = config.train.steps
        self._progress = Progress("step", steps, start, unit="items", numbers="compiling")
        self._schedule = learning_rate_schedule(config.optimizer, steps)
        flops = flops_per_token(config.model, config.train.sequence_length)
        self._flops_per_token = flops.training(causal_halved=True)
        self._peak_flops = peak_flops
        self._stopwatch = Stopwatch()
        self.booked = self._stopwatch.booked  # for blocks that are not training
        self.say = self._progress.say
        self._start, self._started = start, time.perf_counter()
        self._read_step, self._read_seconds = start, 0.0
        self._waiting: list[tuple[int, Metrics]] = []

    def waited(self, reason: str, items: Iterator[_T]) -> Iterator[_T]:
        """Yields the items, and books the time spent waiting for each."""
        while True:
            with self.booked(reason):
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
        """Waits for the dispatched steps, checks them all and writes the metrics that are due.

        Raises `Diverged` if `train.bad_steps` steps in a row are not finite.
        """
        waiting, self._waiting = self._waiting, []
        for step, metrics in waiting:
            values = {name: float(metrics[name]) for name in ("loss", "grad_norm")}
            if np.isfinite([*values.values()]).all():
                self._bad.clear()
            else:
                self._see_bad(step, values, metrics["grad_norms"])
            if self._is_logged(step):
                self._log(step, values)

    @property
    def is_spoilt(self) -> bool:
        """Returns True if the last step checked left parameters that are not finite."""
        return bool(self._bad) and not self._config.train.skip_bad_batches

    def end_spoilt(self) -> None:
        """Raises `Diverged` if the last parameters are not finite."""
        if self.is_spoilt:
            stop_diverged(self._bad, self._diagnosis_folder)

    def _see_bad(self, step: int, values: dict[str, float], grad_norms: Metrics) -> None:
        diagnosis = {
            "step": step,
            **values,
            "learning_rate": self._learning_rate(step),
            "windows": self._windows(step - 1),
            # Copied off the device only now.
            "grad_norms": {name: float(norm) for name, norm in grad_norms.items()},
        }
        self._bad.append(diagnosis)
        if len(self._bad) >= self._config.train.bad_steps:
            stop_diverged(self._bad, self._diagnosis_folder)
        if self._config.train.skip_bad_batches:
            self._write(step, "skipped", values)
            self.say(f"step {step:,}: loss {values['loss']}, its batch was skipped")

    def _is_logged(self, step: int) -> bool:
        return step % self._config.train.log_every == 0 or step == self._config.train.steps

    def _learning_rate(self, step: int) -> float:
        # The schedule counts updates from 0.
        return float(self._schedule(step - 1))

    def _log(self, step: int, values: dict[str, float]) -> None:
        elapsed = time.perf_counter() - self._started
        # Waiting for data counts as training: a slow disk shows in the tokens per second.
        booked = {k: s for k, s in self._stopwatch.seconds.items() if k != "data"}
        seconds = elapsed - sum(booked.values())
        tokens = (step - self._read_step) * self._config.tokens_per_step
        rate = tokens / max(seconds - self._read_seconds, 1e-9)
        self._read_step, self._read_seconds = step, seconds
        values = values | {
            "learning_rate": self._learning_rate(step),
            "tokens_per_second": rate,
            "mfu": rate * self._flops_per_token / self._peak_flops,
        }
        self._write(step, "train", values)
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

    def finish(self, step: int) -> None:
        """Writes and prints how this process spent its time."""
        total, booked = time.perf_counter() - self._started, self._stopwatch.seconds
        seconds = {f"{reason}_seconds": seconds for reason, seconds in booked.items()}
        self._write(step, "time", {"seconds": total, **seconds})
        shares = [f"{reason} {seconds / total:.1%}" for reason, seconds in booked.items()]
        self.say(f"{self._workdir}: {total:,.0f} s: {', '.join(shares)}")

    def __enter__(self) -> Self:
        self._progress.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.__exit__(*exception)
        if self._writer is not None:
            self._writer.close()
