"""Trials of faults: real processes, real kills, and the table that they add up to.

`make test` makes a few of each, a `quick` number, and skips those whose number is 0; FAULTS=full in
the environment, which `make faults` sets, makes the `full` number of them. No mark chooses between
the two. At the end stands a table: fault, trials, how many were survived, the most work lost, wrong
results; of the full set it is in runs/faults.md as well.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import small_runs
from processes import comes
from small_runs import last_step, metrics, saved_steps  # noqa: F401

from bottleneck.storage.folders import locked

SETTINGS = {
    "model.head_rank": 6,
    "train.steps": 60,
    "train.batch_size": 8,
    "probe.every": 20,
    "checkpoint.every": 7,
}

IS_FULL = os.environ.get("FAULTS") == "full"
# The moments of kills are drawn from it: always the same ones in `make test`, others each time in
# `make faults`, which prints it, so that a failure can be repeated.
SEED = os.environ.get("SEED") or (str(time.time_ns()) if IS_FULL else "0")


def pytest_report_header() -> str:
    return f"SEED={SEED}"


def source() -> random.Random:
    """Random numbers of the test that is running."""
    return random.Random(f"{SEED} {os.environ['PYTEST_CURRENT_TEST']}")


class WrongResult(AssertionError):
    """What a program said or left is not true; anything else that fails was not survived."""


@dataclass
class Row:
    """Of the table."""

    fault: str
    claim: str
    trials: int = 0
    survived: int = 0
    lost: list[str] = field(default_factory=list)  # as said of each trial that lost something
    wrong: int = 0


_rows: dict[str, Row] = {}


def run_trials(
    fault: str, claim: str, trial: Callable[[int], str | None], *, full: int, quick: int = 1
) -> None:
    """Makes trials of a fault, two at a time, and fails where one of them did.

    Args:
        trial: makes the trial of this number; returns what was lost, "12 steps" or the like, or
            None; raises where the claim does not hold.
    """
    if not (IS_FULL or quick):
        pytest.skip("in the full set")
    row = _rows.setdefault(fault, Row(fault, claim))
    problems: list[BaseException] = []

    def one(index: int) -> None:
        row.trials += 1
        try:
            lost = trial(index)
        except Exception as error:
            row.wrong += isinstance(error, WrongResult)
            problems.append(error)
        else:
            row.survived += 1
            row.lost += [lost] if lost else []

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, range(full if IS_FULL else quick)))
    if problems:
        raise problems[0]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table, in Markdown."""
    if not _rows:
        return
    lines = [
        "| fault | what must hold | trials | survived | lost at most | wrong results |",
        "|---|---|---|---|---|---|",
    ]
    for row in _rows.values():
        most = max(row.lost, key=lambda text: float(text.split()[0]), default="nothing")
        lines.append(
            f"| {row.fault} | {row.claim} | {row.trials} | {row.survived} | {most} | {row.wrong} |"
        )
    terminalreporter.section("faults")
    for line in lines:
        terminalreporter.write_line(line)
    if IS_FULL:
        target = Path("runs/faults.md")
        target.parent.mkdir(exist_ok=True)
        target.write_text("\n".join(lines) + "\n", encoding="utf-8")


@dataclass
class Program:
    """A command of ours, started as processes of their own, that leaves a folder."""

    arguments: list[str]  # after `python -m bottleneck`; "{folder}" stands for the folder
    environment: dict[str, str]
    prelude: str = ""  # Python that the process runs before it begins

    def start(self, folder: Path, *more: str, **options: Any) -> subprocess.Popen[str]:
        arguments = [argument.replace("{folder}", str(folder)) for argument in self.arguments]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        begin = ["-m", "bottleneck"]
        if self.prelude:
            run = (
                "import runpy; runpy.run_module('bottleneck', run_name='__main__', alter_sys=True)"
            )
            begin = ["-c", f"{self.prelude}\n{run}"]
        return subprocess.Popen(
            [sys.executable, *begin, *arguments, *more],
            env=self.environment,
            text=True,
            start_new_session=True,
            **pipes | options,
        )

    def finish(self, folder: Path, *more: str, code: int = 0, timeout: float = 300) -> str:
        """What the command said that ran to its end, which it did with this exit code."""
        process = self.start(folder, *more)
        try:
            output, _ = process.communicate(timeout=timeout)
        finally:
            process.kill()
        assert process.returncode == code, output
        assert "Traceback" not in output, output
        return output

    def kill(
        self,
        folder: Path,
        moment: Callable[[], bool],
        *,
        delay: float = 0.0,
        signal_number: int = signal.SIGKILL,
        codes: tuple[int, ...] = (0,),
    ) -> bool:
        """Starts the command and kills it, and all that it started, at a moment and a delay.

        Args:
            codes: with which it may have ended before.
        Returns: whether it was killed; else it had ended before.
        """
        process = self.start(folder, stdout=subprocess.DEVNULL)
        comes(moment, process)
        time.sleep(delay)
        if process.poll() is None:
            os.killpg(process.pid, signal_number)
        code = process.wait()
        assert code in (*codes, -signal_number), f"exit code {code} before it was killed"
        return code == -signal_number


@dataclass
class Lab:
    """A corpus, a config and a place for programs that were compiled before."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "config.py"

    @property
    def text(self) -> Path:
        return self.folder / "text"

    @property
    def environment(self) -> dict[str, str]:
        """One device, as on a user's machine; what was compiled once is found again."""
        mine = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
        return mine | {
            "JAX_ENABLE_COMPILATION_CACHE": "true",
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "COLUMNS": "1000",
        }

    def program(self, *arguments: str, **environment: str) -> Program:
        return Program([*arguments], self.environment | environment)

    def training(self, *more: str, prelude: str = "", **environment: str) -> Program:
        """`train`, into the folder."""
        arguments = ["train", f"--config={self.config}", "--workdir={folder}", *more]
        return Program(arguments, self.environment | environment, prelude)


def assert_same_run(ours: Path, theirs: Path, *, tolerance: float = 0.0) -> None:
    """As `small_runs.assert_same_run`; raises `WrongResult` where they differ."""
    try:
        small_runs.assert_same_run(ours, theirs, tolerance=tolerance)
    except AssertionError as error:
        raise WrongResult(str(error)) from error


@pytest.fixture(scope="session")
def faults() -> Any:
    """What tests of faults share: this module."""
    return sys.modules[__name__]


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """One for all workers, as the first of them makes it, with its undisturbed run."""
    folder = tmp_path_factory.getbasetemp() / "lab"
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = tmp_path_factory.getbasetemp().parent / "lab"
    made = Lab(folder)
    with locked(folder.with_name("lab.lock"), lambda _: None):
        if not folder.exists():
            folder.mkdir()
            small_runs.write_experiment(folder, SETTINGS)
            made.training().finish(folder / "undisturbed")
    return made


@pytest.fixture(scope="session")
def undisturbed(lab: Lab) -> Path:
    """A run that nothing happened to; whatever is killed must end as this one did."""
    return lab.folder / "undisturbed"
