"""The tensors of a model in a folder: one safetensors file, or several shards and their index.

Opening reads only headers. Slices are read with `pread`, so memory holds only the requested data.
The other formats are pickles, which run code when they are loaded.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bottleneck.errors import UserError

_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
FLOATS = ("F16", "BF16", "F32")  # the types of weights

_PIECE_BYTES = 2**23  # per read, as float32
_ALIGNMENT = 64  # bytes, of arrays on XLA's CPU devices
SHARD_BYTES = 4 * 2**30  # limit of a written file, unless one tensor is larger


class SafetensorsFolder(contextlib.AbstractContextManager["SafetensorsFolder"]):
    """The tensors of a folder by name, in the order of their files; a context manager.

    - shapes: name → shape.
    - types: name → type, in the names of the format.
    """

    def __init__(self, folder: Path):
        """Opens the files; raises `UserError` if one is missing or damaged."""
        self._owner: dict[str, Any] = {}
        self._path_of: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, str] = {}
        self._files = contextlib.ExitStack()
        try:
            for path in _files(folder):
                self._open(path)
            self._check_index(folder)
        except BaseException:
            self._files.close()
            raise

    def _open(self, path: Path) -> None:
        try:
            file = self._files.enter_context(
                safe_open(path, framework="numpy", backend="pread")  # type: ignore[no-untyped-call]
            )
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing, although the index names it") from error
        except (OSError, SafetensorError, UnicodeError) as error:  # a name that is not UTF-8
            raise UserError(_damaged(path, error)) from error
        for name in file.offset_keys():
            header = file.get_slice(name)
            if name in self._owner:
                raise UserError(f"{name} is in {self._path_of[name].name} and in {path.name}")
            self._owner[name], self._path_of[name] = file, path
            self.shapes[name] = tuple(header.get_shape())
            self.types[name] = header.get_dtype()

    def _check_index(self, folder: Path) -> None:
        for name, file in _index(folder).items():
            if name not in self._owner or self._path_of[name].name != file:
                raise UserError(
                    f"{folder / file} lacks the tensor {name}, which the index places there"
                )

    def read(self, name: str, bounds: tuple[tuple[int, int], ...]) -> np.ndarray:
        """Reads a slice of a tensor, in the type of the file.

        Args:
            bounds: (start, stop) of each dimension.
        """
        (start, stop), *rest = bounds
        inner = [slice(*pair) for pair in rest]
        shape = tuple(high - low for low, high in bounds)
        step = max(_PIECE_BYTES * (stop - start) // max(_bytes(shape), 1), 1)
        result = None
        try:
            stored = self._owner[name].get_slice(name)
            for low in range(start, stop, step):
                piece = stored[(slice(low, min(low + step, stop)), *inner)]
                if result is None:
                    result = _aligned(shape, piece.dtype)
                result[low - start : low - start + len(piece)] = piece
        except (OSError, SafetensorError) as error:
            raise UserError(_damaged(self._path_of[name], error)) from error
        assert result is not None, f"{name} has no rows"
        return result

    def __exit__(self, *_: object) -> None:
        self._files.close()


def _files(folder: Path) -> list[Path]:
    """Returns the files that hold the tensors; raises `UserError` if none exist."""
    if index := _index(folder):
        return [folder / name for name in sorted(set(index.values()))]
    if (folder / _WHOLE).is_file():
        return [folder / _WHOLE]
    for pattern in _PICKLES:
        for pickle in sorted(folder.glob(pattern)):
            raise UserError(
                f"{pickle} is a pickle, which can run any code when it is loaded; if you trust it, "
                f"convert it once: {conversion(folder, None)}"
            )
    raise UserError(f"{folder} has no {_WHOLE} and no {_INDEX}")


def conversion(source: str | Path, revision: str | None) -> str:
    """Returns a command that converts a model with transformers to a folder of safetensors."""
    where = json.dumps(str(source))
    if revision is not None:
        where += f", revision={json.dumps(revision)}"
    program = (
        "from transformers import AutoModelForCausalLM as M; "
        f'M.from_pretrained({where}).save_pretrained("converted")'
    )
    # Users paste it into a shell, and a folder may have any name.
    return f"python -c {shlex.quote(program)}"


def _index(folder: Path) -> dict[str, str]:
    """Returns tensor → name of its file; empty without an index."""
    path = folder / _INDEX
    if not path.is_file():
        return {}
    try:
        index = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = {str(name): str(file) for name, file in index.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not an index of safetensors: {error!r}") from error
    for file in names.values():
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise UserError(f"{path} names {file}; it may only name .safetensors files beside it")
    return names


def _damaged(path: Path, error: Exception) -> str:
    return f"{path} is not a whole safetensors file ({error}); copy or download it again"


def write(folder: Path, shapes: dict[str, tuple[int, ...]], make: Callable[[str], Any]) -> None:
    """Writes float32 tensors into a folder, with an index if they need more than one file.

    Args:
        shapes: name → shape of each tensor, in order.
        make: name → tensor; called once for each. Memory holds the tensors of one file.
    """
    groups = list(_groups(shapes))
    names = [_WHOLE]
    if len(groups) > 1:
        names = [f"model-{i:05}-of-{len(groups):05}.safetensors" for i in range(1, len(groups) + 1)]
    for name, group in zip(names, groups, strict=True):
        arrays = {tensor: np.ascontiguousarray(make(tensor), np.float32) for tensor in group}
        save_file(arrays, folder / name, metadata={"format": "pt"})
        del arrays
    if len(groups) > 1:
        index = {
            "metadata": {"total_size": sum(map(_bytes, shapes.values()))},
            "weight_map": {t: n for n, group in zip(names, groups, strict=True) for t in group},
        }
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _groups(shapes: dict[str, tuple[int, ...]]) -> Iterator[list[str]]:
    """Yields the names of the tensors of each file."""
    group: list[str] = []
    size = 0
    for name, shape in shapes.items():
        if group and size + _bytes(shape) > SHARD_BYTES:
            yield group
            group, size = [], 0
        group.append(name)
        size += _bytes(shape)
    yield group


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns an empty array aligned so that a CPU device takes it without a copy."""
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(n_bytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + n_bytes].view(dtype).reshape(shape)


def _bytes(shape: tuple[int, ...]) -> int:
    return 4 * int(np.prod(shape))
