"""Checkpoints of a series: the steps of a released model, or those of our own run.

A checkpoint gives its architecture, hashes its weights piece by piece, and loads them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import jax
from jax.sharding import Mesh

from bottleneck.config import ModelConfig
from bottleneck.errors import UserError
from bottleneck.model import transformer
from bottleneck.model.transformer import Params
from bottleneck.pretrained import weight_digest
from bottleneck.pretrained.checkpoint_series import Release, releases
from bottleneck.pretrained.huggingface import from_pretrained
from bottleneck.pretrained.imported_run import TOKENIZER
from bottleneck.pretrained.published_config import read_config
from bottleneck.runs.folder import CONFIG
from bottleneck.runs.reading import CorpusFacts, Run, load


class Checkpoint(Protocol):
    """The weights of one step; every method raises `UserError` if they cannot be read."""

    def model(self, mesh: Mesh) -> ModelConfig:
        """Returns its architecture, with the vocabulary padded for the mesh."""

    def tokenizer(self) -> Path | None:
        """Returns its tokenizer.json, or None."""

    def digest(self) -> str:
        """Hashes its weights; hashes are comparable only within one series."""

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
    """Opens the series in a run folder, or in a source of `checkpoint_series.releases`.

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
    return Series(name, {step: _Released(r) for step, r in releases(source).items()})


@dataclass(frozen=True)
class _Released:
    release: Release

    @functools.cached_property
    def _folder(self) -> Path:
        return self.release.folder()  # asks the hub each time

    def model(self, mesh: Mesh) -> ModelConfig:
        return read_config(self._folder, mesh.shape["tensor"]).model

    def tokenizer(self) -> Path | None:
        path = self._folder / TOKENIZER
        return path if path.is_file() else None

    def digest(self) -> str:
        return weight_digest.of_folder(self._folder)

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
        return weight_digest.of_params(self.run.params(self.step))

    def load(self, mesh: Mesh) -> Params:
        shardings = transformer.shardings(self.run.config.model, mesh)
        return jax.device_put(self.run.params(self.step), shardings)
