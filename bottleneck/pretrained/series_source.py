"""The checkpoints of a series: the steps of a released model, or those of our own run.

A checkpoint gives its architecture, hashes its weights, and loads them. Released steps have one of
three layouts. A folder has a subfolder per step. A model in a cache of the hub has refs that name
snapshots. A name on the hub has a revision per step.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from bottleneck.config import ModelConfig
from bottleneck.errors import UserError
from bottleneck.model import transformer
from bottleneck.model.transformer import Params
from bottleneck.pretrained.hub import UNREACHABLE, locate, refusal
from bottleneck.pretrained.huggingface import from_pretrained, match_tensors
from bottleneck.pretrained.imported_run import TOKENIZER
from bottleneck.pretrained.published_config import read_config
from bottleneck.pretrained.revisions import step_of_folder, step_of_revision
from bottleneck.pretrained.safetensors_folder import SafetensorsFolder
from bottleneck.runs.folder import CONFIG
from bottleneck.runs.reading import CorpusFacts, Run, load

_SNAPSHOT = re.compile(r"\w[\w.-]*")
_PIECE = 2**22  # values hashed at a time


class Checkpoint(Protocol):
    """The weights of one step; every method raises `UserError` if they cannot be read."""

    def model(self, mesh: Mesh) -> ModelConfig:
        """Returns its architecture, with the vocabulary padded for the mesh."""

    def tokenizer(self) -> Path | None:
        """Returns its tokenizer.json, or None."""

    def digest(self) -> str:
        """Returns a hash of the names of its weights and of their values as float32.

        It is hexadecimal, 64 digits. The order of tensors, their files and their stored type make
        no difference. Hashes are comparable only within one series.
        """

    def load(self, mesh: Mesh) -> Params:
        """Loads its parameters onto the mesh."""


@dataclass(frozen=True)
class Series:
    """The checkpoints of one model by step, ascending.

    - name: the path of a folder, or a name on the hub.
    - corpus: that of our own run, if its tokenizer was trained on it.
    """

    name: str
    checkpoints: dict[int, Checkpoint]
    corpus: CorpusFacts | None = None


def open_series(source: str) -> Series:
    """Opens the series in a run folder, or in a source of `releases`.

    Raises: `UserError` if it has no checkpoint.
    """
    path = Path(source).expanduser()
    name = str(path.resolve()) if path.is_dir() else source
    if (path / CONFIG).is_file() and (path / "checkpoints").is_dir():
        run = load(path)
        if not run.steps:
            raise UserError(f"{path} has no checkpoint yet")
        corpus = run.trained_on if run.config.data.tokenizer is None else None
        return Series(name, {step: _OfRun(run, step) for step in run.steps}, corpus)
    return Series(name, {**releases(source)})


@dataclass(frozen=True)
class Release:
    """One step of a released model, a `Checkpoint`."""

    path_or_name: str
    revision: str | None = None

    def folder(self) -> Path:
        """Returns the folder of its files, downloaded if necessary; raises `UserError`."""
        return self._folder

    @functools.cached_property
    def _folder(self) -> Path:
        if self.revision is None and not Path(self.path_or_name).is_dir():
            raise UserError(f"{self.path_or_name} is missing, although a revision names it")
        return locate(self.path_or_name, self.revision)  # asks the hub each time

    def model(self, mesh: Mesh) -> ModelConfig:
        return read_config(self._folder, mesh.shape["tensor"]).model

    def tokenizer(self) -> Path | None:
        path = self._folder / TOKENIZER
        return path if path.is_file() else None

    def digest(self) -> str:
        """Hashes all tensors of its family, piece by piece in the order of their files."""
        architecture = read_config(self._folder)
        with SafetensorsFolder(self._folder) as stored:

            def pieces(name: str) -> Iterator[np.ndarray]:
                rows, *rest = stored.shapes[name]
                size = max(_PIECE // max(int(np.prod(rest)), 1), 1)
                for start in range(0, rows, size):
                    bounds = (start, min(start + size, rows)), *((0, n) for n in rest)
                    yield stored.read(name, bounds)

            tensors = match_tensors(self._folder, architecture, stored)
            return _digest((t.name, t.shape, pieces(name)) for name, t in tensors.items())

    def load(self, mesh: Mesh) -> Params:
        return from_pretrained(self._folder, mesh=mesh)[1]


@dataclass(frozen=True)
class _OfRun:
    run: Run
    step: int

    def model(self, mesh: Mesh) -> ModelConfig:
        return self.run.config.model

    def tokenizer(self) -> Path | None:
        named = self.run.config.data.tokenizer
        # An imported run holds its own; a moved run's config names the old folder.
        beside = self.run.path / TOKENIZER
        return beside if beside.is_file() else Path(named) if named else None

    def digest(self) -> str:
        flat = traverse_util.flatten_dict(self.run.params(self.step))
        return _digest((".".join(path), x.shape, [np.asarray(x)]) for path, x in flat.items())

    def load(self, mesh: Mesh) -> Params:
        shardings = transformer.shardings(self.run.config.model, mesh)
        return jax.device_put(self.run.params(self.step), shardings)


def _digest(tensors: Iterable[tuple[str, tuple[int, ...], Iterable[np.ndarray]]]) -> str:
    lines = []
    for name, shape, pieces in tensors:
        digest = hashlib.sha256()
        for piece in pieces:
            values = np.ascontiguousarray(piece, np.float32)
            if not np.isfinite(values).all():
                raise UserError(f"{name} has values that are not finite")
            digest.update(values.data)
        lines.append(f"{name} {list(shape)} {digest.hexdigest()}")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def releases(source: str) -> dict[int, Release]:
    """Returns step → release for all steps of one model.

    Args:
        source: one of these.
            - A folder with subfolders whose names end in the step, such as step1000.
            - The folder models--ORG--NAME of a cache of the hub.
            - A name on the hub, with revisions stepN.
    Raises: `UserError` if it is none of these, or two releases have the same step.
    """
    path, step_in = Path(source).expanduser(), step_of_revision
    if not path.is_dir():
        found = _of_hub(source)
    elif (path / "refs").is_dir() and (path / "snapshots").is_dir():
        found = _of_cache(path)
    else:
        found = {p.name: Release(str(p)) for p in sorted(path.iterdir()) if p.is_dir()}
        step_in = step_of_folder
    names: dict[int, str] = {}
    for name in found:
        step = step_in(name)
        if step in names:
            raise UserError(f"{source}: {names[step]} and {name} are both step {step}")
        if step is not None:
            names[step] = name
    if not names:
        raise UserError(
            f"{source} has no steps; it must have a subfolder or a revision for each, such as "
            "step1000"
        )
    return {step: found[names[step]] for step in sorted(names)}


def _of_cache(path: Path) -> dict[str, Release]:
    found = {}
    for ref in sorted(p for p in (path / "refs").iterdir() if p.is_file()):
        commit = ref.read_text(encoding="utf-8", errors="replace").strip()
        if not _SNAPSHOT.fullmatch(commit):
            raise UserError(f"{ref} holds {commit!r}; it must name a snapshot of the same model")
        found[ref.name] = Release(str(path / "snapshots" / commit))
    return found


def _of_hub(name: str) -> dict[str, Release]:
    from huggingface_hub import HfApi, constants, errors

    try:
        refs = HfApi().list_repo_refs(name)
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        raise UserError(refusal(error, name, f"the revisions of {name}")) from error
    except Exception as error:  # of the transport library, which differs between releases
        # Compute nodes often have no network; earlier downloads are enough.
        cached = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
        if not (cached / "refs").is_dir():
            raise UserError(f"{name} {UNREACHABLE}") from error
        return _of_cache(cached)
    return {ref.name: Release(name, ref.name) for ref in (*refs.branches, *refs.tags)}
