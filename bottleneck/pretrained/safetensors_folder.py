"""The tensors of a model in a folder: one safetensors file, or several shards and their index.

Opening reads headers alone; data are read slice by slice, with `pread`, so that no more of a file
is in memory than was asked for. Other formats are pickles, which run code when they are loaded.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bottleneck.errors import UserError

_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
FLOATS = ("F16", "BF16", "F32")  # the types of weights

_PIECE_BYTES = 2**23  # at a time from a file, as float32
_ALIGNMENT = 64  # bytes; of the arrays of XLA's CPU devices

# A file that is written gets no larger, but for a single tensor that is.
SHARD_BYTES = 4 * 2**30


class SafetensorsFolder:
    """The tensors of a folder by name, in the order of their files.

    shapes, types: name → shape, name → type, in the words of the format. `read` gives the values.
    A context manager, which holds the files open.
    """

    def __init__(self, folder: Path):
        """Raises `UserError` where the files are not there or not whole."""
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
            raise UserError(f"{path} is not there, though the index names it") from error
        except (OSError, SafetensorError, UnicodeError) as error:  # a name that is no UTF-8
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
                raise UserError(f"{folder / file} has no tensor {name}, though the index says so")

    def read(self, name: str, bounds: tuple[tuple[int, int], ...]) -> np.ndarray:
        """A slice of a tensor, in the type of the file.

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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._files.close()


def _files(folder: Path) -> list[Path]:
    """The files that hold the tensors; raises `UserError` where there are none of this format."""
    if index := _index(folder):
        return [folder / name for name in sorted(set(index.values()))]
    if (folder / _WHOLE).is_file():
        return [folder / _WHOLE]
    for pattern in _PICKLES:
        for pickle in sorted(folder.glob(pattern)):
            raise UserError(
                f"{pickle} is a pickle, which can run any code when it is loaded; where you trust "
                f"it, convert it once: {conversion(folder, None)}"
            )
    raise UserError(f"{folder} has no {_WHOLE} and no {_INDEX}")


def conversion(source: str | Path, revision: str | None) -> str:
    """A command that turns a model which transformers can load into a folder of safetensors."""
    where = json.dumps(str(source))
    if revision is not None:
        where += f", revision={json.dumps(revision)}"
    program = (
        "from transformers import AutoModelForCausalLM as M; "
        f'M.from_pretrained({where}).save_pretrained("converted")'
    )
    # It will be pasted into a shell, and a folder may have any name.
    return f"python -c {shlex.quote(program)}"


def _index(folder: Path) -> dict[str, str]:
    """Tensor → name of its file; nothing where there is no index."""
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
            raise UserError(f"{path} names {file}; it may name .safetensors files beside it alone")
    return names


def _damaged(path: Path, error: Exception) -> str:
    return f"{path} is not a whole safetensors file ({error}); copy or download it again"


def write(folder: Path, shapes: dict[str, tuple[int, ...]], make: Callable[[str], Any]) -> None:
    """Writes float32 tensors into a folder, with an index where they take more than one file.

    Args:
        shapes: name → shape of each tensor, in order.
        make: name → the tensor; called once each, and never with more than a file's held.
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
    """The tensors of each file."""
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
    """An array that a CPU device takes as it lies, where it would copy another."""
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(n_bytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + n_bytes].view(dtype).reshape(shape)


def _bytes(shape: tuple[int, ...]) -> int:
    return 4 * int(np.prod(shape))
