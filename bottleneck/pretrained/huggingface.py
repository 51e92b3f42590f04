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
from bottleneck.pretrained import families, published_config, safetensors_folder
from bottleneck.pretrained.families import FAMILIES, Layout, Tensor
from bottleneck.pretrained.hub import locate
from bottleneck.pretrained.published_config import CONFIG, Architecture
from bottleneck.pretrained.safetensors_folder import FLOATS, SafetensorsFolder


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
    architecture = published_config.read_config(folder, 1 if mesh is None else mesh.shape["tensor"])
    with SafetensorsFolder(folder) as stored:
        tensors = match_tensors(folder, architecture, stored)
        return architecture.model, _load(stored, tensors, architecture.model, mesh)


def match_tensors(
    folder: Path, architecture: Architecture, stored: SafetensorsFolder
) -> dict[str, Tensor]:
    """Returns name in the files → tensor, in the order of the files; leaves out buffers.

    Raises: `UserError` naming a tensor that does not fit.
    """
    family, model = FAMILIES[architecture.family], architecture.model
    names = {name.removeprefix(family.prefix): name for name in stored.shapes}
    if family.head not in names and family.head_alias in names:
        names = {family.head if k == family.head_alias else k: v for k, v in names.items()}
    if model.n_layers > len(names):  # before all names are spelled out
        raise UserError(
            f"{folder} has {len(names)} tensors, too few for the {model.n_layers:,} layers of its "
            f"{CONFIG}"
        )
    tensors = {tensor.name: tensor for tensor in families.tensors(architecture)}
    embedding = next(iter(tensors))
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    has_tied_head = model.tie_embeddings and family.head in names
    if has_tied_head:
        shapes[family.head] = shapes[embedding]
    missing = [name for name in shapes if name not in names]
    surplus = [name for name in names if name not in shapes and not family.surplus.fullmatch(name)]
    for verb, wrong in (("lacks", missing), ("has the surplus", surplus)):
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise UserError(f"{folder} {verb} tensor {wrong[0]}{more}, going by its {CONFIG}")
    for name, shape in shapes.items():
        found, kind = stored.shapes[names[name]], stored.types[names[name]]
        if found != shape:
            raise UserError(
                f"{folder}: {name} has shape {list(found)}; going by its {CONFIG} it must have "
                f"{list(shape)}"
            )
        if kind not in FLOATS:
            raise UserError(
                f"{folder}: {name} is of type {kind}; it must be one of {', '.join(FLOATS)}"
            )
    if has_tied_head:
        _check_tied(folder, stored, names[family.head], names[embedding])
    return {stored_as: tensors[name] for name, stored_as in names.items() if name in tensors}


def _check_tied(folder: Path, stored: SafetensorsFolder, head: str, embedding: str) -> None:
    """Raises `UserError` if a stored head differs from the embedding that it is tied to."""
    n_rows, width = stored.shapes[embedding]
    for start in range(0, n_rows, 4096):
        rows = ((start, min(start + 4096, n_rows)), (0, width))
        if not np.array_equal(stored.read(head, rows), stored.read(embedding, rows)):
            raise UserError(
                f"{folder}: {head} differs from {embedding}, although its {CONFIG} ties them; "
                "it must have tie_word_embeddings=false"
            )


def _load(
    stored: SafetensorsFolder, tensors: dict[str, Tensor], model: ModelConfig, mesh: Mesh | None
) -> Params:
    """Raises `UserError` if a parameter has no even shares on the mesh."""
    abstract = jax.eval_shape(lambda: transformer.init_params(model, jax.random.key(0)))
    shapes = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(abstract).items()}
    shardings = dict.fromkeys(shapes, SingleDeviceSharding(jax.devices()[0]))
    if mesh is not None:
        shardings = traverse_util.flatten_dict(transformer.shardings(model, mesh))
    for path, sharding in shardings.items():
        try:
            sharding.shard_shape(shapes[path])
        except ValueError as error:
            assert mesh is not None
            raise UserError(
                f"{'.'.join(path)} of shape {list(shapes[path])} has no even shares on a "
                f"mesh of {', '.join(f'{k}={v}' for k, v in mesh.shape.items())}"
            ) from error
    # Parameters outside the layers are whole tensors and need no stack.
    stacks = {path: shape for path, shape in shapes.items() if path[0] == "blocks"}
    params: dict[families.Path, jax.Array] = jax.jit(
        lambda: {path: jnp.zeros(shape) for path, shape in stacks.items()},
        out_shardings={path: shardings[path] for path in stacks},
    )()
    for name, tensor in tensors.items():
        old = tuple(params.get(path) for path in tensor.paths)
        program = _placing(
            tensor.layout,
            model.n_heads,
            tuple(shapes[path] for path in tensor.paths),
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
            axis if axis is not None and n % sharding.mesh.shape[axis] == 0 else None
            for axis, n in zip(axes, shape, strict=True)
        ]
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*axes))

    # One read for all devices with the same share.
    read = functools.cache(functools.partial(stored.read, name))

    def share(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        return read(tuple(part.indices(n)[:2] for part, n in zip(index, shape, strict=True)))

    return jax.make_array_from_callback(shape, sharding, share)


def save_pretrained(config: ModelConfig, params: Params, path: str | os.PathLike[str]) -> None:
    """Writes a folder of float32 safetensors that `from_pretrained` of transformers loads.

    A factored head becomes the product A @ B in float32, since no released family has factors.
    Padded rows of the vocabulary are dropped. Biases that only the family has are zeros. The host
    holds the tensors of one file at a time.

    Raises: `UserError` if no family has such a model, or the folder is not empty.
    """
    folder = Path(path).expanduser()
    architecture = published_config.publish(config)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already; choose a new folder")
    family = FAMILIES[architecture.family]
    tensors = {
        (tensor.name if tensor.name == family.head else family.prefix + tensor.name): tensor
        for tensor in families.tensors(architecture)
    }
    flat = traverse_util.flatten_dict(params)
    written = {path for tensor in tensors.values() for path in tensor.paths} | {("head", "basis")}
    assert flat.keys() <= written, f"left out: {flat.keys() - written}"
    draft = folder.with_name(folder.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        safetensors_folder.write(
            draft,
            {name: tensor.shape for name, tensor in tensors.items()},
            lambda name: _published(tensors[name], config, flat),
        )
        record = json.dumps(published_config.config_record(architecture), indent=2) + "\n"
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
    packed = families.pack(parts, tensor.layout, config.n_heads)
    return packed[: tensor.shape[0]] if tensor.layer is None else packed
