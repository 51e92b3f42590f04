"""The tensors of a model in a folder: one safetensors file, or several shards and their index.

Opening reads only headers. Slices are read with `pread`, so memory holds only the requested data.
The other formats are pickles, which run code when they are loaded.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bottleneck.errors import UserError

_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# The types of weights, by their names in the format.
FLOATS: dict[str, Any] = {"F16": np.float16, "BF16": ml_dtypes.bfloat16, "F32": np.float32}

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
        self._stored: dict[str, tuple[Path, Any]] = {}  # name → its file
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, str] = {}
        index = _index(folder)
        with contextlib.ExitStack() as files:
            for path in _files(folder, index):
                self._open(path, files)
            for name, file in index.items():
                if name not in self._stored or self._stored[name][0].name != file:
                    raise UserError(
                        f"{folder / file} lacks the tensor {name}, which the index places there"
                    )
            self._files = files.pop_all()

    def _open(self, path: Path, files: contextlib.ExitStack) -> None:
        try:
            file = files.enter_context(
                safe_open(path, framework="numpy", backend="pread")  # type: ignore[no-untyped-call]
            )
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing, although the index names it") from error
        except (OSError, SafetensorError, UnicodeError) as error:  # a name that is not UTF-8
            raise UserError(_damaged(path, error)) from error
        for name in file.offset_keys():
            header = file.get_slice(name)
            if name in self._stored:
                raise UserError(f"{name} is in {self._stored[name][0].name} and in {path.name}")
            self._stored[name] = path, file
            self.shapes[name] = tuple(header.get_shape())
            self.types[name] = header.get_dtype()

    def read(self, name: str, bounds: tuple[tuple[int, int], ...]) -> np.ndarray:
        """Reads a slice, (start, stop) of each dimension, of a tensor in the type of the file."""
        (start, stop), *rest = bounds
        inner = [slice(*pair) for pair in rest]
        shape = tuple(high - low for low, high in bounds)
        step = max(_PIECE_BYTES * (stop - start) // max(_bytes(shape), 1), 1)
        result = _aligned(shape, np.dtype(FLOATS[self.types[name]]))
        path, file = self._stored[name]
        try:
            stored = file.get_slice(name)
            for low in range(start, stop, step):
                high = min(low + step, stop)
                result[low - start : high - start] = stored[(slice(low, high), *inner)]
        except (OSError, SafetensorError) as error:
            raise UserError(_damaged(path, error)) from error
        return result

    def __exit__(self, *_: object) -> None:
        self._files.close()


def _files(folder: Path, index: dict[str, str]) -> list[Path]:
    """Returns the files that hold the tensors; raises `UserError` if none exist."""
    if index:
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
    from huggingface_hub import split_state_dict_into_shards_factory

    split = split_state_dict_into_shards_factory(
        shapes,
        get_storage_size=_bytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=SHARD_BYTES,
    )
    for file, names in split.filename_to_tensors.items():
        arrays = {name: np.ascontiguousarray(make(name), np.float32) for name in names}
        save_file(arrays, folder / file, metadata={"format": "pt"})
        del arrays
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns an empty array aligned so that a CPU device takes it without a copy."""
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(n_bytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + n_bytes].view(dtype).reshape(shape)


def _bytes(shape: tuple[int, ...]) -> int:
    return 4 * int(np.prod(shape))
