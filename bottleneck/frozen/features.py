"""A feature set on disk: hidden states of one layer, their targets, and the head that reads them.

It is a folder with a manifest, the head, and two parts, "train" and "heldout". Everything but the
hidden states is written first; those are appended batch by batch, so that a writer that was killed
goes on where it stopped. N: tokens of a part; D: hidden width; V: vocabulary; R: rank of the head.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from bottleneck.errors import UserError
from bottleneck.model.head import HeadFactors
from bottleneck.runs.folder import is_unused
from bottleneck.storage import json_files
from bottleneck.storage.arrays import check, checksum, read_arrays, write_arrays
from bottleneck.storage.folders import as_path

Part = Literal["train", "heldout"]
PARTS: tuple[Part, ...] = ("train", "heldout")
DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}

_MANIFEST = "manifest.json"
_HEAD = "head.npz"
_HIDDEN, _LAYERS, _TOKENS = "hidden.bin", "layers.bin", "tokens.npz"
_DONE = "COMPLETE"  # holds the sizes and CRC-32s of the large files
_ANEW = "delete the folder and make it anew"


@dataclass(frozen=True)
class Manifest:
    """What a feature set is; two with the same manifest and sources have the same features."""

    model: str  # where it came from, and which step or revision
    layer: int  # 0 is the embedding, n_layers is after the final norm
    n_layers: int
    d_model: int
    vocab_size: int
    sequence_length: int  # tokens that the model saw together
    dtype: str  # of the hidden states on disk, one of DTYPES
    corpus: str  # digest of the tokens
    tokens: dict[str, int]  # part → N
    # Largest |logit − head · h| over the first batch: about 0 where the head is this linear map and
    # the layer is the last; null for other layers.
    head_mismatch: float | None

    @property
    def bytes(self) -> int:
        """What the hidden states take on the disk."""
        return sum(self.tokens.values()) * self.d_model * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Features:
    """One part, memory-mapped."""

    hidden: np.ndarray  # [N, D]
    targets: np.ndarray  # int32 [N]
    documents: np.ndarray  # int32 [N]: which document each token is of


@dataclass(frozen=True)
class FeatureSet:
    """A finished feature set; `load_features` opens one."""

    path: Path
    manifest: Manifest
    head: HeadFactors  # float32
    files: dict[str, dict[str, int]]  # "train/hidden.bin" → its bytes and crc32

    def part(self, name: Part) -> Features:
        """The features of a part; `UserError` where it was made without, or is damaged."""
        n_tokens = self.manifest.tokens[name]
        if not n_tokens:
            raise UserError(f"{self.path} has no {name} tokens; make it anew with some")
        folder = self.path / name
        self._check(name, _HIDDEN)
        hidden = np.memmap(folder / _HIDDEN, DTYPES[self.manifest.dtype], mode="r")
        arrays = read_arrays(folder / _TOKENS, _ANEW)
        targets, documents = arrays["targets"], arrays["documents"]
        if not len(targets) == len(documents) == n_tokens:
            raise UserError(
                f"{folder / _TOKENS} has not the {n_tokens:,} tokens of {name}; {_ANEW}"
            )
        return Features(hidden.reshape(n_tokens, self.manifest.d_model), targets, documents)

    def layer_sums(self, name: Part) -> np.ndarray:
        """float64 [batches, n_layers + 1, D + 3]: `geometry.layer_sums` of each batch and depth."""
        self._check(name, _LAYERS)
        sums = np.fromfile(self.path / name / _LAYERS, np.float64)
        return sums.reshape(-1, self.manifest.n_layers + 1, self.manifest.d_model + 3)

    def _check(self, part: Part, name: str) -> None:
        """Reads a file through, about a second for each gigabyte; `UserError` if it is damaged."""
        path, info = self.path / part / name, self.files.get(f"{part}/{name}")
        if info is not None:  # sets of older versions have none
            check(path, info["bytes"], info["crc32"], _ANEW)

    def require_linear_head(self, tolerance: float = 1e-2) -> None:
        """Raises `UserError` where the logits are not the head times these hidden states."""
        mismatch = self.manifest.head_mismatch
        if mismatch is None:
            raise UserError(
                f"{self.path} holds layer {self.manifest.layer} of {self.manifest.n_layers}, which "
                f"the head does not read; take --layer={self.manifest.n_layers}"
            )
        if mismatch > tolerance:
            raise UserError(
                f"{self.path}: the model's logits differ from its head times its last hidden "
                f"states by up to {mismatch:.3g}, so the head is not a linear map of these"
            )


def load_features(path: str | os.PathLike[str]) -> FeatureSet:
    """The feature set in a folder; `UserError` where it is not one, or is not finished."""
    path = as_path(path)
    if not (path / _MANIFEST).is_file():
        raise UserError(f"{path} is not a feature set: it has no {_MANIFEST}")
    if not (path / _DONE).is_file():
        raise UserError(f"{path} is not finished; run the command that began it again")
    manifest = read_manifest(path)
    width = DTYPES[manifest.dtype].itemsize * manifest.d_model
    for name, n_tokens in manifest.tokens.items():
        file = path / name / _HIDDEN
        size = file.stat().st_size if file.exists() else 0
        if size != n_tokens * width:
            raise UserError(
                f"{file} is damaged: it has {size:,} bytes instead of {n_tokens * width:,}; {_ANEW}"
            )
    arrays = read_arrays(path / _HEAD, _ANEW)
    basis = jnp.asarray(arrays["basis"]) if "basis" in arrays else None
    head = HeadFactors(jnp.asarray(arrays["rows"]), basis)
    is_empty = not (path / _DONE).stat().st_size
    return FeatureSet(
        path, manifest, head, {} if is_empty else json_files.read(path / _DONE, _ANEW)
    )


def read_manifest(path: Path) -> Manifest:
    try:
        manifest = Manifest(**json_files.read(path / _MANIFEST, _ANEW))
        if manifest.dtype not in DTYPES or not set(manifest.tokens) <= set(get_args(Part)):
            raise ValueError(f"it has {manifest.dtype} and the parts {[*manifest.tokens]}")
        return manifest
    except (ValueError, TypeError) as error:
        raise UserError(f"{path / _MANIFEST} is damaged: {error}") from error


class FeatureWriter:
    """Writes a feature set, going on where an earlier writer of the same one stopped."""

    def __init__(self, path: Path, manifest: Manifest, head: HeadFactors):
        """Raises `UserError` where the folder holds something else, or the disk is too small."""
        self.path, self.manifest = path, manifest
        if (path / _MANIFEST).exists():
            self._check_same(read_manifest(path))
        elif not is_unused(path):
            raise UserError(f"{path} is not empty and holds no feature set; choose a new folder")
        missing = manifest.bytes - self._bytes_written()
        parent = next(p for p in (path, *path.absolute().parents) if p.exists())
        free = shutil.disk_usage(parent).free
        if missing > free:
            raise UserError(
                f"{path} needs {missing:,} bytes more and {parent} has {free:,}; take fewer "
                "tokens, --dtype=bfloat16, or another disk"
            )
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            # The manifest first: a folder without one is taken for something else's.
            if not (path / _MANIFEST).exists():
                json_files.write(path / _MANIFEST, dataclasses.asdict(manifest))
            if not (path / _HEAD).exists():
                factors = {"rows": head.rows, "basis": head.basis}
                arrays = {k: np.asarray(v) for k, v in factors.items() if v is not None}
                write_arrays(path / _HEAD, arrays)

    @property
    def is_complete(self) -> bool:
        return (self.path / _DONE).exists()

    def begin(self, part: Part, targets: np.ndarray, documents: np.ndarray) -> None:
        """Writes what is known of a part before the model has run; int32 [N] each."""
        folder = self.path / part
        with writing(folder):
            folder.mkdir(exist_ok=True)
            write_arrays(folder / _TOKENS, {"targets": targets, "documents": documents})
            for name in (_HIDDEN, _LAYERS):
                (folder / name).touch()

    def batches_done(self, part: Part, sizes: np.ndarray) -> int:
        """How many batches of so many tokens each are there; what is there of the next is cut."""
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
            hidden: [n, D] of the tokens that count.
            layers: [n_layers + 1, D + 3], `geometry.layer_sums` over them at each depth.
        """
        folder = self.path / part
        with writing(folder), (folder / _HIDDEN).open("ab") as file:
            file.write(np.ascontiguousarray(hidden, DTYPES[self.manifest.dtype]).tobytes())
        with writing(folder), (folder / _LAYERS).open("ab") as file:
            file.write(np.ascontiguousarray(layers, np.float64).tobytes())

    def finish(self) -> FeatureSet:
        """Marks the set as whole, with the checksums of its large files, and opens it."""
        if not self.is_complete:
            names = [f"{part}/{name}" for part in PARTS for name in (_HIDDEN, _LAYERS)]
            paths = {name: self.path / name for name in names if (self.path / name).is_file()}
            files = {
                name: {"bytes": path.stat().st_size, "crc32": checksum(path)}
                for name, path in paths.items()
            }
            with writing(self.path):
                json_files.write(self.path / _DONE, files)
        return load_features(self.path)

    def _bytes_written(self) -> int:
        files = (self.path / part / _HIDDEN for part in PARTS)
        return sum(file.stat().st_size for file in files if file.exists())

    def _check_same(self, old: Manifest) -> None:
        before, now = dataclasses.asdict(old), dataclasses.asdict(self.manifest)
        changed = [k for k in now if k != "head_mismatch" and before[k] != now[k]]
        if changed:
            what = "; ".join(f"{k}: {before[k]} → {now[k]}" for k in changed)
            raise UserError(f"{self.path} holds other features ({what}); choose a new folder")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a failure to write into a line that says what is kept."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(
                f"the disk of {path} is full; what is written stays, and the same command goes on "
                "from there once there is room"
            ) from error
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def describe(manifest: Manifest) -> dict[str, Any]:
    """What a person wants to know before it is made: name → text."""
    return {
        "model": manifest.model,
        "layer": f"{manifest.layer} of {manifest.n_layers}, D = {manifest.d_model:,}",
        "tokens": ", ".join(f"{n:,} {part}" for part, n in manifest.tokens.items()),
        "size": f"{manifest.bytes / 1e9:.3g} GB in {manifest.dtype}",
    }
