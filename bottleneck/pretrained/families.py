"""The map between our parameters and the published tensors of GPT-NeoX, GPT-2 and Llama.

V: vocabulary, unpadded; D: width; F: width of the MLP; H: heads; K: size of one. A path names a
parameter in our tree. Parameters under "blocks" stack all layers along their first dimension; a
published tensor holds one layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

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
    layout: Layout
    layer: int | None = None  # None: outside the layers


@dataclass(frozen=True)
class Family:
    """Names of the tensors of a family.

    - prefix: of all tensors except the head; some files omit it.
    - head_aliases: other names of the head in files in the wild.
    - surplus: buffers without weights that some files hold.
    - layers: the tensors of one layer, with {} for its number.
    - around: the tensors outside the layers, without the head.
    """

    prefix: str
    head: str
    head_aliases: tuple[str, ...]
    surplus: re.Pattern[str]
    layers: Callable[[Architecture], Iterator[Tensor]]
    around: Callable[[Architecture], Iterator[Tensor]]


_ATTENTION, _QUERY_KEY_VALUE = ("blocks", "attention"), ("query", "key", "value")


def tensors(architecture: Architecture) -> list[Tensor]:
    """Lists all tensors of a published model, head last; a tied head is only the embedding."""
    family, model = FAMILIES[architecture.family], architecture.model
    result = list(family.around(architecture))
    of_a_layer = list(family.layers(architecture))
    for layer in range(model.n_layers):
        result += [replace(t, name=t.name.format(layer), layer=layer) for t in of_a_layer]
    if not model.tie_embeddings:
        shape = (model.vocab_size, model.d_model)
        result.append(Tensor(family.head, shape, (("head", "rows"),), "same"))
    return result


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


def pack(parameters: tuple[Any, ...], layout: Layout, n_heads: int, library: Any) -> Any:
    """Returns the published tensor of these parameters, the inverse of `unpack`.

    Args:
        library: `numpy` or `jax.numpy`, that of the arrays.
    """
    if layout == "same":
        return parameters[0]
    if layout == "transposed":
        return parameters[0].T
    if layout == "by_head":
        rows = [part.T.reshape(n_heads, -1, *part.shape[:-1]) for part in parameters]
        stacked = library.stack(rows, axis=1)
        return stacked.reshape(-1, *stacked.shape[3:])
    return library.concatenate(parameters, axis=-1)


def _norm(name: str, path: Path, architecture: Architecture) -> Iterator[Tensor]:
    shape = (architecture.model.d_model,)
    yield Tensor(f"{name}.weight", shape, ((*path, "scale"),), "same")
    if architecture.model.norm == "layernorm":
        yield Tensor(f"{name}.bias", shape, ((*path, "bias"),), "same")


def _linear(
    name: str,
    shape: tuple[int, int],
    path: Path,
    layout: Layout,
    has_bias: bool,
    parts: tuple[str, ...] = (),
) -> Iterator[Tensor]:
    """Yields the tensors of a linear map, or of one with three `parts`; `shape` as published."""
    owners = [(*path, part) for part in parts] or [path]
    n_out = shape[0] if layout in ("transposed", "by_head") else shape[1]
    yield Tensor(f"{name}.weight", shape, tuple((*own, "kernel") for own in owners), layout)
    if has_bias:
        of_bias: Layout = "same" if layout == "transposed" else layout
        yield Tensor(f"{name}.bias", (n_out,), tuple((*own, "bias") for own in owners), of_bias)


def _embedding(name: str, architecture: Architecture) -> Tensor:
    model = architecture.model
    owner = "head" if model.tie_embeddings else "embedding"
    return Tensor(name, (model.vocab_size, model.d_model), ((owner, "rows"),), "same")


def _gpt_neox_layers(architecture: Architecture) -> Iterator[Tensor]:
    D, F = architecture.model.d_model, architecture.model.mlp_width
    at, own = "layers.{}", architecture.attention_bias
    yield from _norm(f"{at}.input_layernorm", ("blocks", "attention_norm"), architecture)
    yield from _norm(f"{at}.post_attention_layernorm", ("blocks", "mlp_norm"), architecture)
    joint = f"{at}.attention.query_key_value"
    yield from _linear(joint, (3 * D, D), _ATTENTION, "by_head", own, _QUERY_KEY_VALUE)
    output = (*_ATTENTION, "output")
    yield from _linear(f"{at}.attention.dense", (D, D), output, "transposed", own)
    for name, shape, part in (("dense_h_to_4h", (F, D), "up"), ("dense_4h_to_h", (D, F), "down")):
        path = ("blocks", "mlp", part)
        yield from _linear(f"{at}.mlp.{name}", shape, path, "transposed", architecture.mlp_bias)


def _gpt_neox_around(architecture: Architecture) -> Iterator[Tensor]:
    yield _embedding("embed_in.weight", architecture)
    yield from _norm("final_layer_norm", ("final_norm",), architecture)


def _gpt2_layers(architecture: Architecture) -> Iterator[Tensor]:
    D, F = architecture.model.d_model, architecture.model.mlp_width
    at = "h.{}"
    yield from _norm(f"{at}.ln_1", ("blocks", "attention_norm"), architecture)
    yield from _norm(f"{at}.ln_2", ("blocks", "mlp_norm"), architecture)
    joint = f"{at}.attn.c_attn"
    yield from _linear(joint, (D, 3 * D), _ATTENTION, "in_thirds", True, _QUERY_KEY_VALUE)
    yield from _linear(f"{at}.attn.c_proj", (D, D), (*_ATTENTION, "output"), "same", True)
    yield from _linear(f"{at}.mlp.c_fc", (D, F), ("blocks", "mlp", "up"), "same", True)
    yield from _linear(f"{at}.mlp.c_proj", (F, D), ("blocks", "mlp", "down"), "same", True)


def _gpt2_around(architecture: Architecture) -> Iterator[Tensor]:
    model = architecture.model
    yield _embedding("wte.weight", architecture)
    yield Tensor("wpe.weight", (model.max_length, model.d_model), (("positions",),), "same")
    yield from _norm("ln_f", ("final_norm",), architecture)


def _llama_layers(architecture: Architecture) -> Iterator[Tensor]:
    model = architecture.model
    D, F, KV = model.d_model, model.mlp_width, model.kv_heads * model.head_size
    at, attention, mlp = "layers.{}", architecture.attention_bias, architecture.mlp_bias
    yield from _norm(f"{at}.input_layernorm", ("blocks", "attention_norm"), architecture)
    yield from _norm(f"{at}.post_attention_layernorm", ("blocks", "mlp_norm"), architecture)
    for name, shape, part, has_bias in (
        ("self_attn.q_proj", (D, D), ("attention", "query"), attention),
        ("self_attn.k_proj", (KV, D), ("attention", "key"), attention),
        ("self_attn.v_proj", (KV, D), ("attention", "value"), attention),
        ("self_attn.o_proj", (D, D), ("attention", "output"), attention),
        ("mlp.gate_proj", (F, D), ("mlp", "gate"), mlp),
        ("mlp.up_proj", (F, D), ("mlp", "up"), mlp),
        ("mlp.down_proj", (D, F), ("mlp", "down"), mlp),
    ):
        yield from _linear(f"{at}.{name}", shape, ("blocks", *part), "transposed", has_bias)


def _llama_around(architecture: Architecture) -> Iterator[Tensor]:
    yield _embedding("embed_tokens.weight", architecture)
    yield from _norm("norm", ("final_norm",), architecture)


FAMILIES = {
    "gpt_neox": Family(
        prefix="gpt_neox.",
        head="embed_out.weight",
        head_aliases=("lm_head.weight",),
        # The causal mask, its stand-in for minus infinity, the frequencies of the rotation.
        surplus=re.compile(r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)"),
        layers=_gpt_neox_layers,
        around=_gpt_neox_around,
    ),
    "gpt2": Family(
        prefix="transformer.",
        head="lm_head.weight",
        head_aliases=(),
        surplus=re.compile(r"h\.\d+\.attn\.(bias|masked_bias)"),
        layers=_gpt2_layers,
        around=_gpt2_around,
    ),
    "llama": Family(
        prefix="model.",
        head="lm_head.weight",
        head_aliases=(),
        surplus=re.compile(r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"),
        layers=_llama_layers,
        around=_llama_around,
    ),
}
