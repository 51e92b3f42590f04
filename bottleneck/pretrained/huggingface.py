"""Reads and writes released models: a folder of safetensors ↔ our parameters, tensor by tensor.

Each device gets its share of a tensor in the type of the file. There it becomes float32, and one
layer of a stack. So the host holds one tensor at a time, and each process reads only the shares of
its devices. All names and shapes are checked before any value is read.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from bottleneck.config import ModelConfig
from bottleneck.errors import UserError
from bottleneck.model import transformer
from bottleneck.model.head import HeadFactors
from bottleneck.model.transformer import Params
from bottleneck.pretrained import families, safetensors_folder
from bottleneck.pretrained.families import FAMILIES, Layout, Tensor
from bottleneck.pretrained.hub import locate
from bottleneck.pretrained.published_config import (
    CONFIG,
    Architecture,
    config_record,
    publish,
    read_config,
)
from bottleneck.pretrained.safetensors_folder import SafetensorsFolder


def from_pretrained(
    path_or_name: str | os.PathLike[str], revision: str | None = None, mesh: Mesh | None = None
) -> tuple[ModelConfig, Params]:
    """Returns a released GPT-NeoX (Pythia), GPT-2 or Llama as (config, float32 parameters).

    If a family has biases on some maps only, the others get zeros.

    Args:
        path_or_name: a folder with config.json and safetensors, or a name on the hub.
        revision: a branch, tag or commit on the hub; None is its main branch.
        mesh: places the parameters by `parallel.mesh`, with the vocabulary padded to its `tensor`
            axis; None puts all on the first device.
    Raises: `UserError` if the model is missing, damaged, of another family, or lacks a tensor.
    """
    folder = locate(path_or_name, revision)
    architecture = read_config(folder, 1 if mesh is None else mesh.shape["tensor"])
    with SafetensorsFolder(folder) as stored:
        names = match_tensors(folder, architecture, stored)
        params = _load(stored, names, architecture, _shardings(architecture, mesh))
        return architecture.model, params


def match_tensors(
    folder: Path, architecture: Architecture, stored: SafetensorsFolder
) -> dict[str, str]:
    """Returns tensor → its name in the files; raises `UserError` naming one that does not fit."""
    family = FAMILIES[architecture.family]
    has_prefix = any(name.startswith(family.prefix) for name in stored.shapes)
    short = {
        name.removeprefix(family.prefix) if has_prefix else name: name for name in stored.shapes
    }
    for alias in family.head_aliases:
        if alias in short and family.head not in short:
            short[family.head] = short.pop(alias)
    if architecture.model.n_layers > len(stored.shapes):  # before all names are spelled out
        raise UserError(
            f"{folder} has {len(stored.shapes)} tensors, too few for the "
            f"{architecture.model.n_layers:,} layers of its {CONFIG}"
        )
    expected = {tensor.name: tensor.shape for tensor in families.tensors(architecture)}
    missing = [name for name in expected if name not in short]
    surplus = [
        name for name in short if name not in expected and not family.surplus.fullmatch(name)
    ]
    if architecture.model.tie_embeddings and family.head in surplus and not missing:
        _check_tied(folder, stored, short[family.head], short[next(iter(expected))])
        surplus.remove(family.head)
    for verb, names in (("lacks", missing), ("has the surplus", surplus)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{folder} {verb} tensor {names[0]}{more}, going by its {CONFIG}")
    for name, shape in expected.items():
        found = stored.shapes[short[name]]
        if found != shape:
            raise UserError(
                f"{folder}: {name} has shape {list(found)}; going by its {CONFIG} it must have "
                f"{list(shape)}"
            )
        _check_type(folder, name, stored.types[short[name]])
    return {name: short[name] for name in expected}


def _check_type(folder: Path, name: str, kind: str) -> None:
    if kind not in safetensors_folder.FLOATS:
        raise UserError(
            f"{folder}: {name} is of type {kind}; it must be one of "
            + ", ".join(safetensors_folder.FLOATS)
        )


def _check_tied(folder: Path, stored: SafetensorsFolder, head: str, embedding: str) -> None:
    """Raises `UserError` if a stored head differs from the embedding that it is tied to."""
    for name in (head, embedding):
        _check_type(folder, name, stored.types[name])
    shape = stored.shapes[embedding]
    same = stored.shapes[head] == shape
    for start in range(0, shape[0] if same else 0, 4096):
        rows = ((start, min(start + 4096, shape[0])), (0, shape[1]))
        same = same and np.array_equal(stored.read(head, rows), stored.read(embedding, rows))
    if not same:
        raise UserError(
            f"{folder}: {head} differs from {embedding}, although its {CONFIG} ties them; "
            "it must have tie_word_embeddings=false"
        )


def _shardings(architecture: Architecture, mesh: Mesh | None) -> dict[families.Path, Any]:
    """Returns the sharding of each parameter; raises `UserError` if one has no even shares."""
    shapes = traverse_util.flatten_dict(_abstract(architecture.model))
    if mesh is None:
        return dict.fromkeys(shapes, SingleDeviceSharding(jax.devices()[0]))
    result = traverse_util.flatten_dict(transformer.shardings(architecture.model, mesh))
    for path, sharding in result.items():
        try:
            sharding.shard_shape(shapes[path].shape)
        except ValueError as error:
            raise UserError(
                f"{'.'.join(path)} of shape {list(shapes[path].shape)} has no even shares on a "
                f"mesh of {', '.join(f'{k}={v}' for k, v in mesh.shape.items())}"
            ) from error
    return result


def _abstract(config: ModelConfig) -> Params:
    return jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0)))


def _load(
    stored: SafetensorsFolder,
    names: dict[str, str],
    architecture: Architecture,
    shardings: dict[families.Path, Any],
) -> Params:
    shapes = traverse_util.flatten_dict(_abstract(architecture.model))
    by_stored_name = {names[t.name]: t for t in families.tensors(architecture)}
    # Parameters outside the layers are whole tensors and need no stack.
    stacks = {path: leaf.shape for path, leaf in shapes.items() if path[0] == "blocks"}
    params: dict[families.Path, jax.Array] = jax.jit(
        lambda: {path: jnp.zeros(shape) for path, shape in stacks.items()},
        out_shardings={path: shardings[path] for path in stacks},
    )()
    for name in stored.shapes:  # in the order in which they lie on the disk
        if (tensor := by_stored_name.get(name)) is None:
            continue
        old = tuple(params.get(path) for path in tensor.paths)
        program = _placing(
            tensor.layout,
            architecture.model.n_heads,
            tuple(shapes[path].shape for path in tensor.paths),
            tuple(shardings[path] for path in tensor.paths),
        )
        value = _on_devices(stored, name, tensor, shardings[tensor.paths[0]])
        new = program(old, value, np.int32(tensor.layer or 0))
        params |= zip(tensor.paths, jax.block_until_ready(new), strict=True)
    return traverse_util.unflatten_dict(params)


@functools.lru_cache(maxsize=64)
def _placing(
    layout: Layout, n_heads: int, shapes: tuple[tuple[int, ...], ...], shardings: tuple[Any, ...]
) -> Any:
    """Compiles (stacks so far or Nones, published tensor, layer) → parameters of these shapes."""

    def place(stacks: tuple[Any, ...], tensor: jax.Array, layer: jax.Array) -> tuple[Any, ...]:
        parts = families.unpack(tensor, layout, n_heads)
        placed = []
        for stack, part, shape in zip(stacks, parts, shapes, strict=True):
            values = part.astype(jnp.float32)
            if stack is None:  # only a vocabulary can be longer, by its padded rows
                padding = [(0, n - m) for n, m in zip(shape, part.shape, strict=True)]
                placed.append(jnp.pad(values, padding))
            else:
                placed.append(jax.lax.dynamic_update_index_in_dim(stack, values, layer, 0))
        return tuple(placed)

    return jax.jit(place, out_shardings=shardings, donate_argnums=0)


def _on_devices(stored: SafetensorsFolder, name: str, tensor: Tensor, sharding: Any) -> jax.Array:
    """Puts a stored tensor on the devices, split like the parameter that it becomes."""
    shape = stored.shapes[name]
    if isinstance(sharding, NamedSharding):
        axes = [*sharding.spec, *(None,) * 3][tensor.layer is not None :][: len(shape)]
        if tensor.layout in ("transposed", "by_head"):
            axes.reverse()
        if tensor.layout == "in_thirds":
            axes[-1] = None  # queries, keys and values of a head are far apart
        axes = [
            axis if axis is not None and n % _size(sharding.mesh, axis) == 0 else None
            for axis, n in zip(axes, shape, strict=True)
        ]
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*axes))

    # One read for all devices with the same share.
    read = functools.cache(functools.partial(stored.read, name))

    def share(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        return read(tuple(part.indices(n)[:2] for part, n in zip(index, shape, strict=True)))

    return jax.make_array_from_callback(shape, sharding, share)


def _size(mesh: Any, axis: str | tuple[str, ...]) -> int:
    names = (axis,) if isinstance(axis, str) else axis
    return int(np.prod([mesh.shape[name] for name in names]))


def save_pretrained(config: ModelConfig, params: Params, path: str | os.PathLike[str]) -> None:
    """Writes a folder of float32 safetensors that `from_pretrained` of transformers loads.

    A factored head becomes the product A @ B in float32, since no released family has factors.
    Padded rows of the vocabulary are dropped. Biases that only the family has are zeros. The host
    holds the tensors of one file at a time.

    Raises: `UserError` if no family has such a model, or the folder is not empty.
    """
    folder = Path(path).expanduser()
    architecture = publish(config)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already; choose a new folder")
    family = FAMILIES[architecture.family]
    tensors = {
        (tensor.name if tensor.name == family.head else family.prefix + tensor.name): tensor
        for tensor in families.tensors(architecture)
    }
    flat = traverse_util.flatten_dict(params)
    draft = folder.with_name(folder.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        safetensors_folder.write(
            draft,
            {name: tensor.shape for name, tensor in tensors.items()},
            lambda name: _published(tensors[name], config, flat),
        )
        record = json.dumps(config_record(architecture), indent=2) + "\n"
        (draft / CONFIG).write_text(record, encoding="utf-8")
        draft.replace(folder)
    except OSError as error:
        raise UserError(f"cannot write {draft}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _published(
    tensor: Tensor, config: ModelConfig, params: dict[families.Path, jax.Array]
) -> np.ndarray:
    """Returns a published tensor on the host."""
    if not params.keys() >= set(tensor.paths):  # biases that only the family has
        return np.zeros(tensor.shape, np.float32)
    parts = []
    for path in tensor.paths:
        value = params[path] if tensor.layer is None else params[path][tensor.layer]
        if path == ("head", "rows"):
            value = HeadFactors(value, params.get(("head", "basis"))).matrix()
        parts.append(np.asarray(value))
    packed = families.pack(tuple(parts), tensor.layout, config.n_heads, np)
    return packed[: tensor.shape[0]] if tensor.layer is None else packed
