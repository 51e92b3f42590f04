"""Small runs on a text of random words, for tests that start real ones; what two of them share."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from bottleneck import runs
from bottleneck.runs import folder as run_folder
from bottleneck.runs.checkpoints import handlers

TIMINGS = ("tokens_per_second", "mfu", "crc32")  # and all that ends with "seconds"

SETTINGS = {
    "data.corpus": "text",
    "data.tokenizer_vocab_size": 300,
    "data.validation_fraction": 0.2,
    "model.vocab_size": 300,
    "model.d_model": 32,
    "model.n_layers": 2,
    "optimizer.warmup_steps": 5,
    "train.batch_size": 4,
    "train.sequence_length": 32,
    "train.log_every": 1,
    "compute.peak_flops": 1e9,
    "probe.tokens": 512,
}


def write_config(path: Path, settings: Mapping[str, Any], *, more: str = "") -> Path:
    """Writes a config file, which it returns.

    Args:
        settings: fields by their names, "model.d_model", beside and in place of `SETTINGS`.
        more: further Python of the file.
    """
    lines = [
        "from bottleneck.config import base",
        "def get_config():",
        "    config = base()",
        *(f"    config.{name} = {value!r}" for name, value in (SETTINGS | dict(settings)).items()),
        "    return config",
        more,
    ]
    path.write_text("\n".join(lines))
    return path


def write_experiment(folder: Path, settings: Mapping[str, Any], *, more: str = "") -> Path:
    """Writes a text and a config of a small model on it; arguments and result as `write_config`."""
    source = random.Random(0)
    words = [f"word{i}" for i in range(50)]
    text = folder / "text"
    text.mkdir()
    for i in range(60):
        (text / f"{i}.txt").write_text(" ".join(source.choices(words, k=400)))
    places = {"data.paths": (str(text),), "data.cache_dir": str(folder / "cache")}
    return write_config(folder / "config.py", places | dict(settings), more=more)


def last_step(workdir: Path) -> int:
    """The last step whose metrics are on record, -1 where there is none."""
    path = workdir / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith(b"\n")]
    return max((json.loads(line)["step"] for line in whole), default=-1)


def saved_steps(workdir: Path) -> list[int]:
    """Steps with a checkpoint that has its name, ascending."""
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


def state(workdir: Path, step: int) -> dict[str, Any]:
    """Parameters and moments of a checkpoint by their paths, whatever devices saved it."""
    here = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    folder = (workdir / "checkpoints").resolve()
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
    leaves = jax.tree_util.tree_leaves_with_path({item: restored[item] for item in items})
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def assert_same_run(ours: Path, theirs: Path, *, tolerance: float = 0.0) -> None:
    """Metrics, parameters, moments and probes of two finished runs are the same.

    Args:
        tolerance: 0 asks for the same bits; else losses and parameters may be so far apart, but for
            the biases of keys: a softmax does not see them where they are not rotated, so their
            gradient is rounding alone, which Adam divides by its own size.
    """
    a, b = runs.load(ours), runs.load(theirs)
    assert a.is_complete and b.is_complete
    assert a.corpus == b.corpus and a.probe_steps == b.probe_steps
    assert a.steps[-1] == b.steps[-1]
    _assert_same_metrics(metrics(ours), metrics(theirs), tolerance)
    assert_same_state(ours, theirs, b.steps[-1], tolerance=tolerance)
    for step in b.probe_steps if tolerance == 0 else ():
        mine, other = a.probe(step).arrays(), b.probe(step).arrays()
        assert mine.keys() == other.keys()
        for name in other:
            np.testing.assert_array_equal(mine[name], other[name], err_msg=f"{name} of step {step}")


def assert_same_state(ours: Path, theirs: Path, step: int, *, tolerance: float = 0.0) -> None:
    """The part of `assert_same_run` that compares a checkpoint."""
    mine, other = state(ours, step), state(theirs, step)
    assert mine.keys() == other.keys()
    assert len(mine) > 2 * len(jax.tree.leaves(runs.load(theirs).params()))  # Adam keeps two
    for name in other:
        if tolerance == 0 or "['key']['bias']" not in name:
            np.testing.assert_allclose(
                mine[name], other[name], rtol=0, atol=tolerance, err_msg=name
            )


def _assert_same_metrics(ours: Any, theirs: Any, tolerance: float) -> None:
    if tolerance == 0:
        assert ours == theirs
        return
    assert ours.keys() == theirs.keys()
    for key, record in theirs.items():
        if "loss" in record:
            np.testing.assert_allclose(ours[key]["loss"], record["loss"], atol=tolerance)
