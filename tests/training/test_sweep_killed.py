"""A sweep that is killed twice and run again ends as one that was left alone, to the last bit."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from bottleneck.analysis.runs import load_run
from bottleneck.training import metric_lines

CONFIG = """
from bottleneck.config import base
from bottleneck.training.sweep import product

def get_config():
    config = base()
    config.data.corpus = "text"
    config.data.paths = ({text!r},)
    config.data.cache_dir = {cache!r}
    config.data.tokenizer_vocab_size = 300
    config.data.heldout_fraction = 0.2
    config.model.vocab_size = 300
    config.model.d_model = 16
    config.model.n_layers = 1
    config.model.n_heads = 2
    config.model.head_rank = 4
    config.train.steps = 30
    config.train.batch_size = 4
    config.train.sequence_length = 16
    config.train.log_every = 1
    config.train.peak_flops = 1e9
    config.probe.every = 15
    config.probe.tokens = 256
    config.checkpoint.every = 7
    return config

def get_sweep():
    return product({{"seed": range(6)}})  # which all have one compiled program
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """What starts the sweep, but for its folder."""
    folder = tmp_path_factory.mktemp("sweep")
    text = folder / "text"
    text.mkdir()
    for i in range(40):
        (text / f"{i}.txt").write_text(" ".join(f"{i * j % 97}" for j in range(300)))
    config = folder / "config.py"
    config.write_text(CONFIG.format(text=str(text), cache=str(folder / "cache")))
    return [sys.executable, "-m", "bottleneck", "sweep", f"--config={config}", "--parallel=2"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """One device, as on a user's machine; a program that was compiled once is found again."""
    cache = str(tmp_path_factory.mktemp("programs"))
    limits = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    mine = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return mine | limits | {"JAX_COMPILATION_CACHE_DIR": cache}


def start(command, root, environment):
    return subprocess.Popen(
        [*command, f"--workdir={root}"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )


def run(command, root, environment):
    """What the sweep said that ran to its end."""
    sweep = start(command, root, environment)
    output, _ = sweep.communicate(timeout=300)
    logs = "".join(path.read_text() for path in root.glob("logs/*.log"))
    assert sweep.returncode == 0, output + logs
    return output


def steps_done(root):
    return sum(path.read_bytes().count(b'"train"') for path in root.glob("*/metrics.jsonl"))


def kill(command, root, environment, *, after, everything):
    """Starts the sweep and kills it, or it and all that it started, after so many more steps."""
    goal = steps_done(root) + after
    sweep = start(command, root, environment)
    deadline = time.monotonic() + 200
    while steps_done(root) < goal:
        assert sweep.poll() is None, sweep.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    if everything:
        os.killpg(sweep.pid, signal.SIGKILL)
    else:
        sweep.kill()
    assert sweep.stdout is not None
    sweep.stdout.close()
    assert sweep.wait() == -signal.SIGKILL


def metrics(workdir):
    """The last line of each (step, split), without timings."""
    last = {}
    for record in metric_lines.read(workdir):
        if record["split"] != "time":
            for timing in ("tokens_per_second", "mfu"):
                record.pop(timing, None)
            last[record["step"], record["split"]] = record
    return last


def assert_same_run(ours, theirs):
    assert ours.is_complete and theirs.is_complete
    assert ours.config == theirs.config and ours.corpus == theirs.corpus
    assert metrics(ours.path) == metrics(theirs.path)
    assert (ours.steps, ours.probe_steps) == (theirs.steps, theirs.probe_steps)
    for step in theirs.probe_steps:
        a, b = ours.probe(step), theirs.probe(step)
        assert a.keys() == b.keys()
        for name in b:
            np.testing.assert_array_equal(a[name], b[name])
    import jax

    for a, b in zip(*(jax.tree.leaves(run.params()) for run in (ours, theirs)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_sweep_killed_twice_ends_with_the_runs_of_an_undisturbed_one(
    command, environment, tmp_path
):
    undisturbed, root = tmp_path / "undisturbed", tmp_path / "killed"
    run(command, undisturbed, environment)
    source = random.Random(time.time_ns())
    first, second = source.randrange(1, 60), source.randrange(1, 60)
    print("killed after", first, second)
    kill(command, root, environment, after=first, everything=True)
    # What it started goes on: the next sweep waits for it, and does not train the same cell.
    kill(command, root, environment, after=second, everything=False)
    run(command, root, environment)

    names = sorted(path.parent.name for path in undisturbed.glob("*/COMPLETE"))
    assert names == [f"seed={seed}" for seed in range(6)]
    for name in names:
        assert_same_run(load_run(root / name), load_run(undisturbed / name))
    assert "6 of 6 cells are complete already" in run(command, root, environment)
