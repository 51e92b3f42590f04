"""`config.json` of a published model ↔ our `ModelConfig`, for GPT-NeoX, GPT-2 and Llama.

A field of the file that changes the logits and has no counterpart here is refused by name.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bottleneck.config import ModelConfig
from bottleneck.errors import UserError

CONFIG = "config.json"

_MOST = 2**31 - 1  # limit of tokens, widths and positions, which are int32

# Fields that do not change the logits of a trained model.
_WITHOUT_EFFECT = re.compile(
    r"_.*|architectures|transformers[._].*|(torch_)?dtype|use_cache|initializer_range|n_ctx"
    r"|.*_token_id|.*_dropout|.*_pdrop|summary_.*|task_specific_params|reorder_and_upcast_attn"
    r"|pretraining_tp|is_llama_config|is_decoder|gradient_checkpointing|id2label|label2id"
    r"|return_dict|output_.*"
)


@dataclass(frozen=True)
class Architecture:
    """A model in the terms of its family.

    A family may have biases on attention only or on the MLP only. Our models have both or none, so
    missing ones are zeros.
    """

    family: str  # the `model_type` of its config.json
    model: ModelConfig
    attention_bias: bool
    mlp_bias: bool


@dataclass(frozen=True)
class _Format:
    """The config.json of a family: published names and defaults of our fields."""

    architecture: str
    sizes: dict[str, str]  # our field → its published name, which must be present
    fields: dict[str, tuple[str, Any]]  # our field → its published name and default
    activation: tuple[str, str]  # published name and default of `mlp`
    activations: dict[str, str]  # published → our `mlp`; the first of each is written
    fixed: dict[str, Any]  # our fields that have one value in the family
    biases: dict[str, bool]  # choices of the family and their defaults; other biases always exist
    rotation: tuple[str, str | None, float] | None  # theta; the fraction and its default
    expected: dict[str, Any]  # published field → the only value that we can represent


_SIZES = {
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "d_ff": "intermediate_size",
    "max_length": "max_position_embeddings",
}
_GELU = {"gelu": "gelu"} | dict.fromkeys(
    ("gelu_new", "gelu_fast", "gelu_pytorch_tanh"), "gelu_tanh"
)
_FORMATS = {
    "gpt_neox": _Format(
        architecture="GPTNeoXForCausalLM",
        sizes=_SIZES,
        fields={
            "norm_epsilon": ("layer_norm_eps", 1e-5),
            "tie_embeddings": ("tie_word_embeddings", False),
            "parallel_residual": ("use_parallel_residual", True),
        },
        activation=("hidden_act", "gelu"),
        activations=_GELU,
        fixed=dict(norm="layernorm", position="rotary"),
        biases={"attention_bias": True},
        rotation=("rotary_emb_base", "rotary_pct", 0.25),
        expected={},
    ),
    "gpt2": _Format(
        architecture="GPT2LMHeadModel",
        sizes=dict(
            d_model="n_embd", n_layers="n_layer", n_heads="n_head", max_length="n_positions"
        ),
        fields={
            "d_ff": ("n_inner", None),
            "norm_epsilon": ("layer_norm_epsilon", 1e-5),
            "tie_embeddings": ("tie_word_embeddings", True),
        },
        activation=("activation_function", "gelu_new"),
        activations=_GELU,
        fixed=dict(norm="layernorm", position="learned", parallel_residual=False),
        biases={},
        rotation=None,
        expected={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
    ),
    "llama": _Format(
        architecture="LlamaForCausalLM",
        sizes=_SIZES,
        fields={
            "n_kv_heads": ("num_key_value_heads", None),
            "norm_epsilon": ("rms_norm_eps", 1e-6),
            "tie_embeddings": ("tie_word_embeddings", False),
        },
        activation=("hidden_act", "silu"),
        activations={"silu": "swiglu", "swish": "swiglu"},
        fixed=dict(norm="rmsnorm", position="rotary", parallel_residual=False, rotary_fraction=1.0),
        biases={"attention_bias": False, "mlp_bias": False},
        rotation=("rope_theta", None, 1.0),
        expected={"rope_interleaved": False},
    ),
}


class _Fields:
    """Fields of a config.json, taken one by one; the rest must not change the logits."""

    def __init__(self, record: dict[str, Any], where: str):
        self._left = dict(record)
        self._where = where

    def take(self, name: str, default: Any = None) -> Any:
        value = self._left.pop(name, None)
        return default if value is None else value

    def size(self, name: str) -> int:
        """Takes a size, which must be present."""
        value = self.take(name)
        if value is None:
            raise UserError(f"{self._where} has no {name}")
        if type(value) is not int or not 1 <= value <= _MOST:
            self.refuse(name, value, f"a whole number from 1 to {_MOST:,}")
        return value

    def group(self, name: str) -> dict[str, Any]:
        value = self.take(name) or {}
        if not isinstance(value, dict):
            self.refuse(name, value, "a group of fields")
        return value

    def rotation(self, theta: str, fraction: str | None, default_fraction: float) -> dict[str, Any]:
        """Reads our two fields of rotary positions, from separate fields or from a group."""
        older = default_fraction if fraction is None else self.take(fraction, default_fraction)
        group = {"rope_theta": self.take(theta, 10_000.0), "partial_rotary_factor": older}
        group |= self.group("rope_scaling") | self.group("rope_parameters")
        kind = group.pop("rope_type", group.pop("type", "default"))
        if kind != "default":
            self.refuse("rope_scaling", kind, "absent; only plain rotary positions are supported")
        ours = {
            "rotary_theta": group.pop("rope_theta"),
            "rotary_fraction": group.pop("partial_rotary_factor"),
        }
        if fraction is None and ours["rotary_fraction"] != 1.0:
            self.refuse("rope_parameters.partial_rotary_factor", ours["rotary_fraction"], "1.0")
        for name, value in group.items():
            self.refuse(f"rope_parameters.{name}", value, "absent")
        return ours

    def finish(self, expected: dict[str, Any]) -> None:
        """Refuses other values than these, and other fields that change the logits."""
        for name, value in expected.items():
            found = self.take(name, value)
            if found != value:
                self.refuse(name, found, repr(value))
        for name, value in self._left.items():
            if value and not _WITHOUT_EFFECT.fullmatch(name):
                self.refuse(name, value, "absent; it has no counterpart here")

    def refuse(self, name: str, value: Any, allowed: str) -> None:
        raise UserError(f"{self._where}: {name}={value!r} is not supported; it must be {allowed}")


def read_config(folder: Path, vocab_multiple: int = 1) -> Architecture:
    """Reads the architecture from the config.json of a folder.

    Args:
        vocab_multiple: pads the rows of the vocabulary to a multiple of this.
    Raises: `UserError` if the file is missing, or a field has a value that we cannot represent.
    """
    path = folder / CONFIG
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    family = record.get("model_type") if isinstance(record, dict) else None
    if not isinstance(family, str) or family not in _FORMATS:
        raise UserError(
            f"{path}: model_type={family!r} is not supported; it must be one of "
            + ", ".join(_FORMATS)
        )
    form, fields = _FORMATS[family], _Fields(record, str(path))
    ours = form.fixed | {"vocab_size": fields.size("vocab_size")}
    ours |= {our_name: fields.size(name) for our_name, name in form.sizes.items()}
    ours |= {our_name: fields.take(*named) for our_name, named in form.fields.items()}
    name, default = form.activation
    activation = fields.take(name, default)
    if not isinstance(activation, str) or activation not in form.activations:
        fields.refuse(name, activation, "one of " + ", ".join(form.activations))
    ours["mlp"] = form.activations[activation]
    if form.rotation is not None:
        ours |= fields.rotation(*form.rotation)
    biases = {"attention_bias": True, "mlp_bias": True}
    biases |= {name: fields.take(name, default) for name, default in form.biases.items()}
    ours["use_bias"] = biases["attention_bias"] or biases["mlp_bias"]
    expected = {"model_type": family, "is_encoder_decoder": False, "add_cross_attention": False}
    expected["head_dim"] = ours["d_model"] // ours["n_heads"]
    fields.finish(form.expected | expected)
    try:
        model = ModelConfig(**ours, vocab_multiple=vocab_multiple)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return Architecture(family, model, **biases)


def publish(model: ModelConfig) -> Architecture:
    """Returns the architecture under which our model can be published.

    Raises: `UserError` if no family fits, naming the changes that the nearest family needs.
    """
    wanted = {}
    for family, form in _FORMATS.items():
        allowed: dict[str, Any] = {name: [value] for name, value in form.fixed.items()}
        allowed["mlp"] = list(form.activations.values())
        if "n_kv_heads" not in form.fields:
            allowed["n_kv_heads"] = [None, model.n_heads]
        wrong = [name for name, some in allowed.items() if getattr(model, name) not in some]
        wanted[family] = [f"{name}={allowed[name][0]}" for name in wrong]
    family = min(wanted, key=lambda name: len(wanted[name]))
    if wanted[family]:
        raise UserError(
            f"none of {', '.join(_FORMATS)} has such a model; {family} needs "
            + ", ".join(wanted[family])
        )
    # Biases that the family always has are zeros for a model without biases.
    choices = _FORMATS[family].biases
    has_bias = {n: model.use_bias or n not in choices for n in ("attention_bias", "mlp_bias")}
    return Architecture(family, model, **has_bias)


def config_record(architecture: Architecture) -> dict[str, Any]:
    """Returns the config.json of an architecture, with names that old and new transformers read.

    The vocabulary excludes its padded rows, which would get a probability there.
    """
    model, form = architecture.model, _FORMATS[architecture.family]
    ours = vars(model) | {"d_ff": model.mlp_width, "n_kv_heads": model.kv_heads}
    names = form.sizes | {our_name: name for our_name, (name, _) in form.fields.items()}
    if form.rotation is not None:
        theta, fraction, _ = form.rotation
        names |= {"rotary_theta": theta} | ({"rotary_fraction": fraction} if fraction else {})
    return {name: ours[our_name] for our_name, name in names.items()} | {
        "vocab_size": model.vocab_size,
        "model_type": architecture.family,
        "architectures": [form.architecture],
        form.activation[0]: next(k for k, v in form.activations.items() if v == model.mlp),
        **{name: getattr(architecture, name) for name in form.biases},
        "torch_dtype": "float32",
        # No tokenizer is written.
        "bos_token_id": None,
        "eos_token_id": None,
    }
