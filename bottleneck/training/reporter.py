"""Where a run's numbers go, one step late: files, TensorBoard and the person watching."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import jax
import numpy as np

from bottleneck.config import Config
from bottleneck.folders import write_whole
from bottleneck.model.accounting import flops_per_token
from bottleneck.training.metrics import MetricsWriter, Stopwatch
from bottleneck.training.optimizer import learning_rate_schedule
from bottleneck.training.probing import ProbeRecord
from bottleneck.training.progress import Progress

PROBES = "probes"


def write_record(
    writer: MetricsWriter, workdir: Path, step: int, tokens: int, record: ProbeRecord
) -> None:
    """Writes what a probe found: its arrays into a file of their own, and then its scalars.

    So a step whose two lines of scalars are there has all.
    """
    probes = workdir / PROBES
    probes.mkdir(exist_ok=True)
    archive = io.BytesIO()
    np.savez(archive, allow_pickle=False, **record.arrays)
    write_whole(probes / f"{step:08}.npz", archive.getvalue())
    writer.write(step, "eval", {"tokens": tokens, **record.evaluation})
    writer.write(step, "probe", {"tokens": tokens, **record.scalars})


class Reporter:
    """Writes metrics when their step has surely ended, and books the time that is not training.

    The metrics of a step are read when the next one has been dispatched: the device always has
    work. `settle` reads what is still waiting, before a probe or a save.
    """

    def __init__(self, config: Config, workdir: Path, start: int, peak_flops: float):
        """`peak_flops` are those of all devices together, a second."""
        self._config, self._workdir = config, workdir
        # One process of many writes; the consoles of the others are quiet.
        self._writer = MetricsWriter(workdir, start) if jax.process_index() == 0 else None
        self._progress = Progress(start, config.train.steps)
        self._schedule = learning_rate_schedule(config.optimizer, config.train.steps)
        self._flops_per_token = flops_per_token(
            config.model, config.train.sequence_length
        ).training(causal_halved=True)
        self._peak_flops = peak_flops
        self._stopwatch = Stopwatch()
        self._start, self._started = start, time.perf_counter()
        self._read_step, self._read_seconds = start, 0.0
        self._waiting: tuple[int, dict[str, jax.Array]] | None = None

    def _train_seconds(self) -> float:
        return time.perf_counter() - self._started - sum(self._stopwatch.seconds.values())

    @contextmanager
    def booked(self, reason: str) -> Iterator[None]:
        """Books the time inside under a reason other than training."""
        with self._stopwatch.booked(reason):
            yield

    def train(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of a step just dispatched, and writes those that waited."""
        self.settle()
        if step % self._config.train.log_every == 0 or step == self._config.train.steps:
            self._waiting = (step, metrics)

    def settle(self) -> None:
        """Waits for and writes the metrics that are still waiting, if any."""
        if self._waiting is None:
            return
        (step, metrics), self._waiting = self._waiting, None
        values = {name: float(value) for name, value in metrics.items()}
        seconds = self._train_seconds()
        tokens = (step - self._read_step) * self._config.tokens_per_step
        rate = tokens / max(seconds - self._read_seconds, 1e-9)
        self._read_step, self._read_seconds = step, seconds
        values |= {
            # The schedule counts updates from 0; this is the one that step `step` made.
            "learning_rate": float(self._schedule(step - 1)),
            "tokens_per_second": rate,
            "mfu": rate * self._flops_per_token / self._peak_flops,
        }
        self._write(step, "train", values)
        elapsed = time.perf_counter() - self._started
        steps_left = self._config.train.steps - step
        self._progress.advance(step, values, elapsed / (step - self._start) * steps_left)

    def flush(self) -> None:
        """Returns when all that there is to report is in the run folder."""
        self.settle()
        if self._writer is not None:
            self._writer.flush()

    def probe(self, step: int, record: ProbeRecord) -> None:
        """Writes what a probe found, and says the most of it."""
        if self._writer is not None:
            tokens = step * self._config.tokens_per_step
            write_record(self._writer, self._workdir, step, tokens, record)
        self.say(f"step {step:,}: {record.headline()}")

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
