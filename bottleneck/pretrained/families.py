"""The map between our parameters and the published tensors of GPT-NeoX, GPT-2 and Llama.

V: vocabulary, unpadded; D: width; F: width of the MLP; H: heads; K: size of one. A path names a
parameter in our tree. Parameters under "blocks" stack all layers along their first dimension; a
published tensor holds one layer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from bottleneck.config import ModelConfig
from bottleneck.pretrained.published_config import Architecture

Path = tuple[str, ...]

# Layout of our parameters in a published tensor:
# - same: the parameter itself
# - transposed: [out, in] for a parameter [in, out]
# - by_head: [H·3·K, in] or [H·3·K], the query, key and value of the first head, then of the next
# - in_thirds: [in, 3·D] or [3·D], all queries, then all keys, then all values
Layout = Literal["same", "transposed", "by_head", "in_thirds"]


@dataclass(frozen=True)
class Tensor:
    """A published tensor and the parameters that it holds: one, or query, key and value."""

    name: str  # without the family's prefix
    shape: tuple[int, ...]
    paths: tuple[Path, ...]
    layout: Layout = "same"
    layer: int | None = None  # None: outside the layers


@dataclass(frozen=True)
class Family:
    """Published names of the tensors of a family.

    - prefix: of all tensors except the head; some files omit it.
    - head_alias: another name of the head in files in the wild.
    - surplus: buffers without weights that some files hold.
    - layers: what comes before the number of a layer.
    - norms: of attention, and of the MLP.
    - linear: name → layout, our part of a block, and its maps.
    """

    prefix: str
    head: str
    surplus: re.Pattern[str]
    embedding: str
    final_norm: str
    layers: str
    norms: tuple[str, str]
    linear: dict[str, tuple[Layout, str, tuple[str, ...]]]
    positions: str | None = None
    head_alias: str | None = None


def tensors(architecture: Architecture) -> list[Tensor]:
    """Lists all tensors of a published model, head last; a tied head is only the embedding."""
    family, model = FAMILIES[architecture.family], architecture.model
    D, F, KV = model.d_model, model.mlp_width, model.kv_heads * model.head_size
    head = Tensor(family.head, (model.vocab_size, D), (("head", "rows"),))
    owner = head.paths if model.tie_embeddings else (("embedding", "rows"),)
    around = [replace(head, name=f"{family.embedding}.weight", paths=owner)]
    if family.positions is not None:
        shape = (model.max_length, D)
        around.append(Tensor(f"{family.positions}.weight", shape, (("positions",),)))
    around += _norm(family.final_norm, ("final_norm",), model)
    block = [
        *_norm(family.norms[0], ("blocks", "attention_norm"), model),
        *_norm(family.norms[1], ("blocks", "mlp_norm"), model),
    ]
    widths = {"query": D, "key": KV, "value": KV, "output": D, "gate": F, "up": F, "down": D}
    for name, (layout, part, maps) in family.linear.items():
        n_in, n_out = F if maps == ("down",) else D, sum(widths[one] for one in maps)
        shape = (n_out, n_in) if layout in ("transposed", "by_head") else (n_in, n_out)
        paths = [("blocks", part, one) for one in maps]
        kernels = tuple((*path, "kernel") for path in paths)
        block.append(Tensor(f"{name}.weight", shape, kernels, layout))
        if architecture.attention_bias if part == "attention" else architecture.mlp_bias:
            biases = tuple((*path, "bias") for path in paths)
            of_bias: Layout = "same" if layout == "transposed" else layout
            block.append(Tensor(f"{name}.bias", (n_out,), biases, of_bias))
    layers = [
        replace(tensor, name=f"{family.layers}.{layer}.{tensor.name}", layer=layer)
        for layer in range(model.n_layers)
        for tensor in block
    ]
    return [*around, *layers, *([] if model.tie_embeddings else [head])]


def _norm(name: str, path: Path, model: ModelConfig) -> list[Tensor]:
    names = {"scale": "weight"} | ({"bias": "bias"} if model.norm == "layernorm" else {})
    return [Tensor(f"{name}.{n}", (model.d_model,), ((*path, ours),)) for ours, n in names.items()]


def unpack(tensor: Any, layout: Layout, n_heads: int) -> tuple[Any, ...]:
    """Returns the parameters in a published tensor, an array of numpy or jax."""
    if layout == "same":
        return (tensor,)
    if layout == "transposed":
        return (tensor.T,)
    if layout == "by_head":
        by_head = tensor.reshape(n_heads, 3, -1, *tensor.shape[1:])
        return tuple(by_head[:, i].reshape(-1, *tensor.shape[1:]).T for i in range(3))
    third = tensor.shape[-1] // 3
    return tuple(tensor[..., i * third : (i + 1) * third] for i in range(3))


def pack(parameters: list[np.ndarray], layout: Layout, n_heads: int) -> np.ndarray:
    """Returns the published tensor of these parameters, the inverse of `unpack`."""
    if layout == "same":
        return parameters[0]
    if layout == "transposed":
        return parameters[0].T
    if layout == "by_head":
        rows = [part.T.reshape(n_heads, -1, *part.shape[:-1]) for part in parameters]
        stacked = np.stack(rows, axis=1)
        return stacked.reshape(-1, *stacked.shape[3:])
    return np.concatenate(parameters, axis=-1)


_JOINT = ("query", "key", "value")

FAMILIES = {
    "gpt_neox": Family(
        prefix="gpt_neox.",
        head="embed_out.weight",
        head_alias="lm_head.weight",
        # The causal mask, its stand-in for minus infinity, the frequencies of the rotation.
        surplus=re.compile(r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)"),
        embedding="embed_in",
        final_norm="final_layer_norm",
        layers="layers",
        norms=("input_layernorm", "post_attention_layernorm"),
        linear={
            "attention.query_key_value": ("by_head", "attention", _JOINT),
            "attention.dense": ("transposed", "attention", ("output",)),
            "mlp.dense_h_to_4h": ("transposed", "mlp", ("up",)),
            "mlp.dense_4h_to_h": ("transposed", "mlp", ("down",)),
        },
    ),
    "gpt2": Family(
        prefix="transformer.",
        head="lm_head.weight",
        surplus=re.compile(r"h\.\d+\.attn\.(bias|masked_bias)"),
        embedding="wte",
        positions="wpe",
        final_norm="ln_f",
        layers="h",
        norms=("ln_1", "ln_2"),
        linear={
            "attn.c_attn": ("in_thirds", "attention", _JOINT),
            "attn.c_proj": ("same", "attention", ("output",)),
            "mlp.c_fc": ("same", "mlp", ("up",)),
            "mlp.c_proj": ("same", "mlp", ("down",)),
        },
    ),
    "llama": Family(
        prefix="model.",
        head="lm_head.weight",
        surplus=re.compile(r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"),
        embedding="embed_tokens",
        final_norm="norm",
        layers="layers",
        norms=("input_layernorm", "post_attention_layernorm"),
        linear={
            "self_attn.q_proj": ("transposed", "attention", ("query",)),
            "self_attn.k_proj": ("transposed", "attention", ("key",)),
            "self_attn.v_proj": ("transposed", "attention", ("value",)),
            "self_attn.o_proj": ("transposed", "attention", ("output",)),
            "mlp.gate_proj": ("transposed", "mlp", ("gate",)),
            "mlp.up_proj": ("transposed", "mlp", ("up",)),
            "mlp.down_proj": ("transposed", "mlp", ("down",)),
        },
    ),
}
