"""A hash of a model's weights: checkpoints with the same hash hold the same weights.

It covers the values as float32 and their names. The order of tensors, their files and their stored
type make no difference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from flax import traverse_util

from bottleneck.errors import UserError
from bottleneck.model.transformer import Params
from bottleneck.pretrained.huggingface import match_tensors
from bottleneck.pretrained.published_config import read_config
from bottleneck.pretrained.safetensors_folder import SafetensorsFolder

_PIECE = 2**22  # values hashed at a time


def of_folder(folder: Path) -> str:
    """Returns the hash of a released model in a folder: hexadecimal, 64 digits.

    Reads all tensors of its family, piece by piece in the order of their files, but no buffers.

    Raises:
        UserError: if the folder lacks a complete model of a known family, or a value is not finite.
    """
    architecture = read_config(folder)
    with SafetensorsFolder(folder) as stored:
        names = match_tensors(folder, architecture, stored)
        short = {name: expected for expected, name in names.items()}

        def pieces(name: str) -> Iterator[np.ndarray]:
            rows, *rest = stored.shapes[name]
            size = max(_PIECE // max(int(np.prod(rest)), 1), 1)
            for start in range(0, rows, size):
                bounds = (start, min(start + size, rows)), *((0, n) for n in rest)
                yield stored.read(name, bounds)

        return _digest(
            (short[name], shape, pieces(name))
            for name, shape in stored.shapes.items()
            if name in short
        )


def of_params(params: Params) -> str:
    """Returns the hash of our own parameters; it is not comparable with that of a folder."""
    flat = traverse_util.flatten_dict(params)
    return _digest((".".join(path), leaf.shape, [np.asarray(leaf)]) for path, leaf in flat.items())


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
