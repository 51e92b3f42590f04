"""The folder of a run: its config, its state, and the process that may write it."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bottleneck import config as config_lib
from bottleneck.config import Config
from bottleneck.errors import UserError
from bottleneck.sections import flatten
from bottleneck.storage import json_files
from bottleneck.storage.folders import is_remote, write_whole
from bottleneck.storage.workspace import check_same, check_unused

if TYPE_CHECKING:  # readers of run folders need not import jax
    from bottleneck.data.tokens import TokenCache
    from bottleneck.model.accounting import ParameterCount

CONFIG = "config.json"
METRICS = "metrics.jsonl"
METRICS_PART = "metrics-{:05}.jsonl"  # by number; a bucket has these instead
PROBE = "{:08d}.npz"  # by step, in probes/
COMPLETE = "COMPLETE"

# Settings that may change between restarts, because the run still computes the same.
_FREE_TO_CHANGE = (
    "compute.mesh.",
    "compute.compile_cache",
    "compute.peak_flops",
    "data.cache_dir",
    "data.tokenizer:",  # a path; `check_same_corpus` sees what is in it
    "train.log_every",
    "train.bad_steps",
    "train.skip_bad_batches",  # lets a run resume that a bad batch ended
    "checkpoint.",
)

_VERSIONED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def check_continues(workdir: Path, config: Config) -> None:
    """Raises `UserError` if the folder belongs to another experiment, naming the fields."""
    if not (workdir / CONFIG).exists():
        check_unused(workdir, "a run")
        return
    before, now = (
        {k: v for k, v in flatten(one).items() if not f"{k}:".startswith(_FREE_TO_CHANGE)}
        for one in (config_lib.parse(read_config(workdir)["config"]), config)
    )
    check_same(workdir, "a run", before, now)


def check_same_corpus(workdir: Path, digest: str) -> None:
    """Raises `UserError` if the run started on other tokens."""
    if (workdir / CONFIG).exists() and read_config(workdir)["corpus"]["digest"] != digest:
        raise UserError(
            f"--workdir={workdir} holds a run on other tokens, though its config is the same: the "
            "corpus or its tokenizer has changed; choose a new folder"
        )


def is_complete(workdir: Path) -> bool:
    return (workdir / COMPLETE).exists()


def write_config(workdir: Path, config: Config, facts: dict[str, Any]) -> None:
    """Writes config.json: the config, the libraries' versions, the git revision, other facts."""
    description = {
        "config": config_lib.to_dict(config),
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONED},
        "git_revision": _git_revision(),
        **facts,
    }
    json_files.write(workdir / CONFIG, description)


def read_config(workdir: Path) -> dict[str, Any]:
    """Returns what `write_config` wrote; `UserError` if it is missing or damaged."""
    return json_files.read(workdir / CONFIG, "restore it from a copy, or choose a new folder")


def facts(
    mesh_sizes: dict[str, int], parameters: ParameterCount, cache: TokenCache
) -> dict[str, Any]:
    """Returns the facts that a run records beside its config at its start."""
    return {
        "mesh": mesh_sizes,
        "parameters": {"total": parameters.total, "non_embedding": parameters.non_embedding},
        "corpus": {
            "digest": cache.digest,
            "train_tokens": cache.n_tokens("train"),
            "validation_tokens": cache.n_tokens("validation"),
            "unigram_entropy": cache.unigram_entropy,
            "bytes_per_token": cache.bytes_per_token,
        },
    }


def saved_steps(checkpoints: Path) -> list[int]:
    """Returns the steps with a checkpoint, damaged or not, ascending."""
    steps = numbered(checkpoints, "{}")
    if not is_remote(checkpoints):
        return steps
    # A bucket cannot rename, so there a checkpoint has its name before it is complete.
    return [step for step in steps if (checkpoints / f"{step}/commit_success.txt").exists()]


def numbered(folder: Path, form: str) -> list[int]:
    """Returns the numbers n whose `form.format(n)` is a name in the folder, ascending."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    numbers = {int(digits[0]) for name in names if (digits := re.search("[0-9]{1,18}", name))}
    return sorted(number for number in numbers if form.format(number) in names)


def write_text(path: Path, text: str) -> None:
    """Writes a file that exists whole or not at all."""
    write_whole(path, text.encode())


def metric_parts(workdir: Path) -> dict[int, Path]:
    """Returns the parts of a run's metrics by number, ascending; none outside buckets."""
    return {n: workdir / METRICS_PART.format(n) for n in numbered(workdir, METRICS_PART)}


def metric_files(workdir: Path) -> list[Path]:
    """Returns the files of a run's metrics, in the order of writing; maybe none."""
    whole = workdir / METRICS
    return [whole] if whole.is_file() else [*metric_parts(workdir).values()]


def _git_revision() -> str | None:
    """Returns the commit of this package, or None outside a git checkout."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
