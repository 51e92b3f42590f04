"""Trials of faults: real processes, real kills, and the table that they add up to.

`make test` makes a few of each, a `quick` number, and skips those whose number is 0; FAULTS=full in
the environment, which `make faults` sets, makes the `full` number of them. No mark chooses between
the two. At the end stands a table: fault, trials, how many were survived, the most work lost, wrong
results; of the full set it is in runs/faults.md as well.
"""

from __future__ import annotations

import json
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

import numpy as np
import pytest

IS_FULL = os.environ.get("FAULTS") == "full"

TIMINGS = ("tokens_per_second", "mfu", "crc32")

CONFIG = """
from bottleneck.config import base

def get_config():
    config = base()
    config.data.corpus = "text"
    config.data.paths = ({text!r},)
    config.data.cache_dir = {cache!r}
    config.data.tokenizer_vocab_size = 300
    config.data.heldout_fraction = 0.2
    config.model.vocab_size = 300
    config.model.d_model = 32
    config.model.n_layers = 2
    config.model.head_rank = 6
    config.optimizer.warmup_steps = 5
    config.train.steps = 60
    config.train.batch_size = 8
    config.train.sequence_length = 32
    config.train.log_every = 1
    config.train.peak_flops = 1e9
    config.probe.every = 20
    config.probe.tokens = 512
    config.checkpoint.every = 7
    return config
"""


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
        deadline = time.monotonic() + 300
        while not moment() and process.poll() is None:
            assert time.monotonic() < deadline, "the moment never came"
            time.sleep(0.001)
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


def _make_lab(folder: Path) -> Lab:
    words = [f"word{i}" for i in range(50)]
    source = random.Random(0)
    (folder / "text").mkdir()
    for i in range(60):
        text = " ".join(source.choices(words, k=400))
        (folder / "text" / f"{i}.txt").write_text(text)
    settings = {"text": str(folder / "text"), "cache": str(folder / "cache")}
    (folder / "config.py").write_text(CONFIG.format(**settings))
    return Lab(folder)


def last_step(workdir: Path) -> int:
    """The last step whose metrics are on record, -1 where there is none."""
    path = workdir / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith(b"\n")]
    return max((json.loads(line)["step"] for line in whole), default=-1)


def saved_steps(workdir: Path) -> list[int]:
    """Steps with a checkpoint that has its name, ascending."""
    from bottleneck.training import run_folder

    return run_folder.saved_steps(workdir / "checkpoints")


def metrics(workdir: Path) -> dict[tuple[int, str], dict[str, Any]]:
    """The last line of each (step, split), without timings."""
    last = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        last[record["step"], record["split"]] = {
            name: value
            for name, value in record.items()
            if name not in TIMINGS and not name.endswith("seconds")
        }
    return last


def assert_same_run(ours: Path, theirs: Path, *, tolerance: float = 0.0) -> None:
    """Metrics, parameters, moments and probes of two finished runs are the same.

    Args:
        tolerance: 0 asks for the same bits; else losses and parameters may be so far apart, but for
            the biases of keys: a softmax does not see them where they are not rotated, so their
            gradient is rounding alone, which Adam divides by its own size.
    Raises: `WrongResult` where they differ.
    """
    import jax

    from bottleneck.analysis.runs import load_run

    try:
        a, b = load_run(ours), load_run(theirs)
        assert a.is_complete and b.is_complete
        assert a.corpus == b.corpus and a.probe_steps == b.probe_steps
        assert a.steps[-1] == b.steps[-1]
        _assert_same_metrics(metrics(ours), metrics(theirs), tolerance)
        for (path, mine), (_, other) in zip(
            *(jax.tree_util.tree_leaves_with_path(_state(run)) for run in (ours, theirs)),
            strict=True,
        ):
            name = jax.tree_util.keystr(path)
            if tolerance == 0 or "['key']['bias']" not in name:
                np.testing.assert_allclose(mine, other, rtol=0, atol=tolerance, err_msg=name)
        for step in b.probe_steps if tolerance == 0 else ():
            mine, other = a.probe(step), b.probe(step)
            assert mine.keys() == other.keys()
            for name in other:
                np.testing.assert_array_equal(mine[name], other[name])
    except AssertionError as error:
        raise WrongResult(str(error)) from error


def _assert_same_metrics(ours: Any, theirs: Any, tolerance: float) -> None:
    if tolerance == 0:
        assert ours == theirs
        return
    assert ours.keys() == theirs.keys()
    for key, record in theirs.items():
        if "loss" in record:
            np.testing.assert_allclose(ours[key]["loss"], record["loss"], atol=tolerance)


def _state(workdir: Path) -> Any:
    """Parameters and moments of the last checkpoint, whatever devices saved them."""
    import jax
    import orbax.checkpoint as ocp

    from bottleneck.training.checkpoint import handlers

    folder = (workdir / "checkpoints").resolve()
    here = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    step = saved_steps(workdir)[-1]
    with ocp.CheckpointManager(folder, handler_registry=handlers()) as manager:
        saved = manager.item_metadata(step)
        items = {
            item: ocp.args.StandardRestore(
                jax.tree.map(
                    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
                    saved[item].tree,
                )
            )
            for item in ("params", "opt_state")
        }
        restored = manager.restore(step, args=ocp.args.Composite(**items))
        return {item: restored[item] for item in items}


@pytest.fixture(scope="session")
def faults() -> Any:
    """What tests of faults share: this module."""
    return sys.modules[__name__]


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return _make_lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="session")
def undisturbed(lab: Lab) -> Path:
    """A run that nothing happened to; whatever is killed must end as this one did."""
    workdir = lab.folder / "undisturbed"
    lab.training().finish(workdir)
    return workdir
