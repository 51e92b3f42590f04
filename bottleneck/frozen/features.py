"""A feature set on disk: hidden states of one layer, their targets, and the head that reads them.

It is a folder with a manifest, the head, and the parts `train` and `validation`. The writer appends
hidden states batch by batch after everything else, so a killed one resumes at its last batch.
N: tokens of a part; D: hidden width; V: vocabulary; R: rank of the head.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from bottleneck.errors import UserError
from bottleneck.model.head import HeadFactors
from bottleneck.storage import json_files
from bottleneck.storage.arrays import read_arrays, write_arrays
from bottleneck.storage.checksums import FileInfo, check, damaged, listed, read_infos
from bottleneck.storage.folders import as_path, free_bytes
from bottleneck.storage.workspace import DONE, Workspace

Part = Literal["train", "validation"]
PARTS: tuple[Part, ...] = get_args(Part)
DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}

_MANIFEST = "manifest.json"
_HEAD = "head.npz"
_HIDDEN, _LAYERS, _TOKENS = "hidden.bin", "layers.bin", "tokens.npz"
_REMEDY = "delete the folder, and `features` makes it again"


@dataclass(frozen=True)
class FeatureManifest:
    """The facts that determine a feature set."""

    model: str  # its name, and its step or revision
    layer: int  # 0 is the embedding, n_layers is after the final norm
    n_layers: int
    d_model: int
    vocab_size: int
    sequence_length: int
    dtype: str  # of the hidden states on disk
    corpus: str  # digest of its tokens
    tokens: dict[str, int]  # part → N
    head_mismatch: float | None  # max |logit − W h| over a sequence; None before the last layer

    @property
    def bytes(self) -> int:
        """Size of the hidden states on disk."""
        return sum(self.tokens.values()) * self.d_model * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Features:
    """One part, memory-mapped."""

    hidden: np.ndarray  # [N, D]
    targets: np.ndarray  # int32 [N]
    documents: np.ndarray  # int32 [N]: index of each token's document


@dataclass(frozen=True)
class FeatureSet:
    """A finished feature set; `load` opens one."""

    path: Path
    manifest: FeatureManifest
    head: HeadFactors  # float32
    files: dict[str, FileInfo]  # the large ones, such as "train/hidden.bin"

    def part(self, name: Part) -> Features:
        """Returns the features of a part; raises `UserError` if they are missing or damaged."""
        n_tokens = self.manifest.tokens[name]
        if not n_tokens:
            raise UserError(f"{self.path} has no {name} tokens; make it again with some")
        folder = self.path / name
        self._check(name, _HIDDEN)
        hidden = np.memmap(folder / _HIDDEN, DTYPES[self.manifest.dtype], mode="r")
        arrays = read_arrays(folder / _TOKENS, _REMEDY)
        targets, documents = arrays["targets"], arrays["documents"]
        if not len(targets) == len(documents) == n_tokens:
            raise UserError(
                f"{folder / _TOKENS} does not have the {n_tokens:,} tokens of {name}; {_REMEDY}"
            )
        return Features(hidden.reshape(n_tokens, self.manifest.d_model), targets, documents)

    def layer_sums(self, name: Part) -> np.ndarray:
        """Returns `geometry.layer_sums` by batch: float64 [batches, n_layers + 1, D + 3]."""
        self._check(name, _LAYERS)
        sums = np.fromfile(self.path / name / _LAYERS, np.float64)
        return sums.reshape(-1, self.manifest.n_layers + 1, self.manifest.d_model + 3)

    def _check(self, part: Part, name: str) -> None:
        """Raises `UserError` if a file is damaged; reads it all, about a second per gigabyte."""
        check(self.path / part / name, self.files[f"{part}/{name}"], _REMEDY)

    def require_linear_head(self, tolerance: float = 1e-2) -> None:
        """Raises `UserError` if the logits are not the head times these hidden states."""
        mismatch = self.manifest.head_mismatch
        if mismatch is None:
            raise UserError(
                f"{self.path} holds layer {self.manifest.layer} of {self.manifest.n_layers}, which "
                f"the head does not read; take --layer={self.manifest.n_layers}"
            )
        if mismatch > tolerance:
            raise UserError(
                f"{self.path}: the model's logits differ from its head times its last hidden "
                f"states by up to {mismatch:.3g}, so the head is not a linear map of them"
            )


def load(path: str | os.PathLike[str]) -> FeatureSet:
    """Returns the feature set in a folder; raises `UserError` if it is missing or unfinished."""
    path = as_path(path)
    if not (path / _MANIFEST).is_file():
        raise UserError(f"{path} is not a feature set: it has no {_MANIFEST}")
    if not (path / DONE).is_file():
        raise UserError(f"{path} is not finished; run the command that started it again")
    manifest, files = read_manifest(path), read_infos(path / DONE, _REMEDY)
    width = DTYPES[manifest.dtype].itemsize * manifest.d_model
    for name, n_tokens in manifest.tokens.items():
        if files.get(f"{name}/{_HIDDEN}", FileInfo(0, None)).bytes != n_tokens * width:
            raise damaged(path / DONE, "it describes other features", _REMEDY)
    for name, info in files.items():
        check(path / name, info, _REMEDY, size_only=True)
    arrays = read_arrays(path / _HEAD, _REMEDY)
    basis = jnp.asarray(arrays["basis"]) if "basis" in arrays else None
    return FeatureSet(path, manifest, HeadFactors(jnp.asarray(arrays["rows"]), basis), files)


def read_manifest(path: Path) -> FeatureManifest:
    """Returns the manifest of a feature set; raises `UserError` if it is damaged."""
    try:
        manifest = FeatureManifest(**json_files.read(path / _MANIFEST, _REMEDY))
        if manifest.dtype not in DTYPES or not set(manifest.tokens) <= set(PARTS):
            raise ValueError(f"it has {manifest.dtype} and the parts {[*manifest.tokens]}")
        return manifest
    except (ValueError, TypeError) as error:
        raise UserError(f"{path / _MANIFEST} is damaged: {error}") from error


@contextlib.contextmanager
def filling(
    path: Path, manifest: FeatureManifest, head: HeadFactors
) -> Iterator[FeatureWriter | None]:
    """Yields a writer that resumes a feature set, then seals the set; yields None if it is sealed.

    Raises: `UserError` if the folder holds something else, or the disk is too small.
    """
    workspace = Workspace(
        *(path, dataclasses.asdict(manifest), "features"),
        record=_MANIFEST,
        free=["head_mismatch"],
        remedy=_REMEDY,
    )
    workspace.check()
    large = [path / part / _HIDDEN for part in PARTS]
    missing = manifest.bytes - sum(file.stat().st_size for file in large if file.exists())
    if missing > (free := free_bytes(path)):
        raise UserError(
            f"{path} needs {missing:,} bytes more and its disk has {free:,}; take fewer tokens, "
            "--dtype=bfloat16, or another disk"
        )
    with workspace.opened() as facts:
        if facts:
            yield None
            return
        if not (path / _HEAD).exists():
            factors = {"rows": head.rows} | ({} if head.basis is None else {"basis": head.basis})
            write_arrays(path / _HEAD, factors)
        yield FeatureWriter(path, manifest)
        names = [f"{part}/{name}" for part in PARTS for name in (_HIDDEN, _LAYERS)]
        facts.update(listed(path, [name for name in names if (path / name).is_file()]))


class FeatureWriter:
    """Appends batches to the parts of a feature set."""

    def __init__(self, path: Path, manifest: FeatureManifest):
        self.path, self.manifest = path, manifest

    def begin(self, part: Part, targets: np.ndarray, documents: np.ndarray) -> None:
        """Writes the targets and documents of a part, int32 [N] each, before the model runs."""
        folder = self.path / part
        folder.mkdir(exist_ok=True)
        write_arrays(folder / _TOKENS, {"targets": targets, "documents": documents})
        for name in (_HIDDEN, _LAYERS):
            (folder / name).touch()

    def batches_done(self, part: Part, sizes: np.ndarray) -> int:
        """Returns the number of complete batches on disk; truncates a partial one.

        Args:
            sizes: int [batches], the tokens of each batch.
        """
        folder = self.path / part
        width = self.manifest.d_model * DTYPES[self.manifest.dtype].itemsize
        record = (self.manifest.n_layers + 1) * (self.manifest.d_model + 3) * 8
        ends = np.cumsum(sizes) * width
        n_hidden = int(np.searchsorted(ends, (folder / _HIDDEN).stat().st_size, side="right"))
        n_done = min(n_hidden, (folder / _LAYERS).stat().st_size // record)
        os.truncate(folder / _HIDDEN, int(ends[n_done - 1]) if n_done else 0)
        os.truncate(folder / _LAYERS, n_done * record)
        return n_done

    def append(self, part: Part, hidden: np.ndarray, layers: np.ndarray) -> None:
        """Adds one batch.

        Args:
            hidden: [n, D], tokens of weight 1 alone.
            layers: [n_layers + 1, D + 3], their `geometry.layer_sums` at each depth.
        """
        folder = self.path / part
        with (folder / _HIDDEN).open("ab") as file:
            file.write(np.ascontiguousarray(hidden, DTYPES[self.manifest.dtype]).tobytes())
        with (folder / _LAYERS).open("ab") as file:
            file.write(np.ascontiguousarray(layers, np.float64).tobytes())


def describe(manifest: FeatureManifest) -> dict[str, str]:
    """Returns the headline facts of a feature set: name → text."""
    return {
        "model": manifest.model,
        "layer": f"{manifest.layer} of {manifest.n_layers}, D = {manifest.d_model:,}",
        "tokens": ", ".join(f"{n:,} {part}" for part, n in manifest.tokens.items()),
        "size": f"{manifest.bytes / 1e9:.3g} GB in {manifest.dtype}",
    }
