"""`config.json` of a published model ↔ our `ModelConfig`, for GPT-NeoX, GPT-2 and Llama.

A field of the file that changes the logits and has no counterpart here is refused by name.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bottleneck.config import ModelConfig
from bottleneck.errors import UserError

CONFIG = "config.json"

# Published names of our two activations besides SwiGLU; the tanh one has three.
_GELU = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}

# Our sizes → their published names.
_SIZES = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "d_ff": "intermediate_size",
    "max_length": "max_position_embeddings",
}
_GPT2_SIZES = {
    "vocab_size": "vocab_size",
    "d_model": "n_embd",
    "n_layers": "n_layer",
    "n_heads": "n_head",
    "max_length": "n_positions",
}

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


class _Fields:
    """Fields of a config.json, taken one by one; the rest must not change the logits."""

    def __init__(self, record: dict[str, Any], where: str):
        self._left = dict(record)
        self._where = where

    def take(self, name: str, default: Any = None) -> Any:
        value = self._left.pop(name, None)
        return default if value is None else value

    def sizes(self, names: dict[str, str]) -> dict[str, Any]:
        """Takes the fields of a table of sizes; all must be present."""
        ours = {}
        for our_name, name in names.items():
            value = self.take(name)
            if value is None:
                raise UserError(f"{self._where} has no {name}")
            if type(value) is not int or not 1 <= value <= _MOST:
                self.refuse(name, value, f"a whole number from 1 to {_MOST:,}")
            ours[our_name] = value
        return ours

    def group(self, name: str) -> dict[str, Any]:
        value = self.take(name) or {}
        if not isinstance(value, dict):
            self.refuse(name, value, "a group of fields")
        return value

    def choice(self, name: str, default: str, allowed: dict[str, str]) -> str:
        value = self.take(name, default)
        if not isinstance(value, str) or value not in allowed:
            self.refuse(name, value, "one of " + ", ".join(allowed))
        return allowed[value]

    def expect(self, name: str, expected: Any) -> None:
        """Refuses any other value of a field; an absent field is fine."""
        value = self.take(name, expected)
        if value != expected:
            self.refuse(name, value, repr(expected))

    def rotation(self, theta: str, fraction: str | None, default_fraction: float) -> dict[str, Any]:
        """Reads our two fields of rotary positions, from separate fields or from a group."""
        group = self.group("rope_scaling") | self.group("rope_parameters")
        group.setdefault("rope_theta", self.take(theta, 10_000.0))
        older = default_fraction if fraction is None else self.take(fraction, default_fraction)
        group.setdefault("partial_rotary_factor", older)
        kind = group.pop("rope_type", group.pop("type", "default"))
        if kind != "default":
            self.refuse("rope_scaling", kind, "absent; only plain rotary positions are supported")
        ours = {
            "rotary_theta": group.pop("rope_theta"),
            "rotary_fraction": group.pop("partial_rotary_factor"),
        }
        if fraction is None and ours["rotary_fraction"] != 1.0:
            self.refuse("rope_parameters.partial_rotary_factor", ours["rotary_fraction"], "1.0")
        group.pop("type", None)
        for name, value in group.items():
            self.refuse(f"rope_parameters.{name}", value, "absent")
        return ours

    def finish(self) -> None:
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
    if not isinstance(family, str) or family not in _READERS:
        raise UserError(
            f"{path}: model_type={family!r} is not supported; it must be one of "
            + ", ".join(_READERS)
        )
    fields = _Fields(record, str(path))
    fields.take("model_type")
    ours, attention_bias, mlp_bias = _READERS[family](fields)
    fields.expect("is_encoder_decoder", False)
    fields.expect("add_cross_attention", False)
    fields.finish()
    try:
        model = ModelConfig(**ours, vocab_multiple=vocab_multiple)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return Architecture(family, model, attention_bias, mlp_bias)


def _read_gpt_neox(fields: _Fields) -> tuple[dict[str, Any], bool, bool]:
    ours = fields.sizes(_SIZES) | dict(
        norm_epsilon=fields.take("layer_norm_eps", 1e-5),
        mlp=fields.choice("hidden_act", "gelu", _GELU),
        tie_embeddings=fields.take("tie_word_embeddings", False),
        parallel_residual=fields.take("use_parallel_residual", True),
        use_bias=True,
        **fields.rotation("rotary_emb_base", "rotary_pct", 0.25),
    )
    return ours, fields.take("attention_bias", True), True


def _read_gpt2(fields: _Fields) -> tuple[dict[str, Any], bool, bool]:
    fields.expect("scale_attn_weights", True)
    fields.expect("scale_attn_by_inverse_layer_idx", False)
    ours = fields.sizes(_GPT2_SIZES) | dict(
        d_ff=fields.take("n_inner"),
        norm_epsilon=fields.take("layer_norm_epsilon", 1e-5),
        mlp=fields.choice("activation_function", "gelu_new", _GELU),
        tie_embeddings=fields.take("tie_word_embeddings", True),
        parallel_residual=False,
        position="learned",
        use_bias=True,
    )
    return ours, True, True


def _read_llama(fields: _Fields) -> tuple[dict[str, Any], bool, bool]:
    attention_bias = fields.take("attention_bias", False)
    mlp_bias = fields.take("mlp_bias", False)
    sizes = fields.sizes(_SIZES)
    fields.expect("head_dim", sizes["d_model"] // sizes["n_heads"])
    fields.expect("rope_interleaved", False)
    ours = sizes | dict(
        n_kv_heads=fields.take("num_key_value_heads"),
        norm="rmsnorm",
        norm_epsilon=fields.take("rms_norm_eps", 1e-6),
        mlp=fields.choice("hidden_act", "silu", {"silu": "swiglu", "swish": "swiglu"}),
        tie_embeddings=fields.take("tie_word_embeddings", False),
        parallel_residual=False,
        use_bias=attention_bias or mlp_bias,
        **fields.rotation("rope_theta", None, 1.0),
    )
    return ours, attention_bias, mlp_bias


_READERS = {"gpt_neox": _read_gpt_neox, "gpt2": _read_gpt2, "llama": _read_llama}


def publish(model: ModelConfig) -> Architecture:
    """Returns the architecture under which our model can be published.

    Raises: `UserError` if no family fits, naming the changes that the nearest family needs.
    """
    wanted = {family: _wishes(family, model) for family in _READERS}
    family = min(wanted, key=lambda name: len(wanted[name]))
    if wanted[family]:
        raise UserError(
            f"none of {', '.join(_READERS)} has such a model; {family} needs "
            + ", ".join(wanted[family])
        )
    # GPT-NeoX always has biases on its MLP, GPT-2 everywhere: zeros for a model without biases.
    return Architecture(
        family,
        model,
        attention_bias=model.use_bias or family == "gpt2",
        mlp_bias=model.use_bias or family != "llama",
    )


def _wishes(family: str, model: ModelConfig) -> list[str]:
    """Lists the fields that a model would have to change to fit a family."""
    is_llama = family == "llama"
    needed: dict[str, tuple[Any, ...]] = {
        "norm": ("rmsnorm",) if is_llama else ("layernorm",),
        "mlp": ("swiglu",) if is_llama else ("gelu", "gelu_tanh"),
        "position": ("learned",) if family == "gpt2" else ("rotary",),
    }
    if family != "gpt_neox":
        needed["parallel_residual"] = (False,)
    if is_llama:
        needed["rotary_fraction"] = (1.0,)
    else:
        needed["n_kv_heads"] = (None, model.n_heads)
    return [
        f"{name}={some[0]}" for name, some in needed.items() if getattr(model, name) not in some
    ]


def config_record(architecture: Architecture) -> dict[str, Any]:
    """Returns the config.json of an architecture, with names that old and new transformers read.

    The vocabulary excludes its padded rows, which would get a probability there.
    """
    model = architecture.model
    activation = {"gelu": "gelu", "gelu_tanh": "gelu_new", "swiglu": "silu"}[model.mlp]
    ours = dataclasses.asdict(model) | {"d_ff": model.mlp_width}
    names = _GPT2_SIZES if architecture.family == "gpt2" else _SIZES
    shared = {name: ours[our_name] for our_name, name in names.items()} | dict(
        model_type=architecture.family,
        tie_word_embeddings=model.tie_embeddings,
        torch_dtype="float32",
        # No tokenizer is written.
        bos_token_id=None,
        eos_token_id=None,
    )
    if architecture.family == "gpt2":
        return shared | dict(
            architectures=["GPT2LMHeadModel"],
            n_inner=model.mlp_width,
            layer_norm_epsilon=model.norm_epsilon,
            activation_function=activation,
        )
    shared |= dict(hidden_act=activation, attention_bias=architecture.attention_bias)
    if architecture.family == "llama":
        return shared | dict(
            architectures=["LlamaForCausalLM"],
            num_key_value_heads=model.kv_heads,
            rms_norm_eps=model.norm_epsilon,
            rope_theta=model.rotary_theta,
            mlp_bias=architecture.mlp_bias,
        )
    return shared | dict(
        architectures=["GPTNeoXForCausalLM"],
        layer_norm_eps=model.norm_epsilon,
        rotary_emb_base=model.rotary_theta,
        rotary_pct=model.rotary_fraction,
        use_parallel_residual=model.parallel_residual,
    )
