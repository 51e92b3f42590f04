"""Published model families as fields of `ModelConfig`: Pythia, GPT-2, Llama and small Llama-likes.

Each function returns the fields that differ from their defaults. Config files call these before the
config is checked, so no array library is imported here.
"""

from __future__ import annotations

from typing import Any

from bottleneck.errors import UserError, suggestion

# size: (layers, D, heads, vocabulary multiple); the two largest are padded for sharding.
# Source: EleutherAI/pythia, README and models/*/*.yml.
PYTHIA = {
    "14m": (6, 128, 4, 128),
    "31m": (6, 256, 8, 128),
    "70m": (6, 512, 8, 128),
    "160m": (12, 768, 12, 128),
    "410m": (24, 1024, 16, 128),
    "1b": (16, 2048, 8, 128),
    "1.4b": (24, 2048, 16, 128),
    "2.8b": (32, 2560, 32, 128),
    "6.9b": (32, 4096, 32, 256),
    "12b": (36, 5120, 40, 512),
}

# size: (layers, D, heads). Source: Radford et al. 2019, table 2, and the released checkpoints.
GPT2 = {
    "small": (12, 768, 12),
    "medium": (24, 1024, 16),
    "large": (36, 1280, 20),
    "xl": (48, 1600, 25),
}

# size: (layers, D, heads, key-value heads, F, vocabulary, longest L, tied). Sources: Touvron et al.
# 2023 (Llama 2); Zhang et al. 2024 (TinyLlama); the released configurations of SmolLM.
LLAMA = {
    "7b": (32, 4096, 32, 32, 11008, 32_000, 4096, False),
    "13b": (40, 5120, 40, 40, 13824, 32_000, 4096, False),
    "tinyllama-1.1b": (22, 2048, 32, 4, 5632, 32_000, 2048, False),
    "smollm-360m": (32, 960, 15, 5, 2560, 49_152, 2048, True),
    "smollm-135m": (30, 576, 9, 3, 1536, 49_152, 2048, True),
}


def pythia(size: str) -> dict[str, Any]:
    """Fields of a Pythia model, with the vocabulary of the GPT-NeoX-20B tokenizer."""
    fields = _sizes("pythia", PYTHIA, size, "n_layers", "d_model", "n_heads", "vocab_multiple")
    return fields | dict(vocab_size=50_277, max_length=2048, rotary_fraction=0.25)


def gpt2(size: str) -> dict[str, Any]:
    """Fields of a GPT-2 model."""
    return _sequential(_sizes("gpt2", GPT2, size, "n_layers", "d_model", "n_heads")) | dict(
        vocab_size=50_257,
        vocab_multiple=1,  # as released; pad it to shard the vocabulary
        tie_embeddings=True,
        mlp="gelu_tanh",
        position="learned",
        max_length=1024,
    )


def llama(size: str) -> dict[str, Any]:
    """Fields of a Llama 2 model, or of a small model built the same way."""
    names = ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_ff", "vocab_size", "max_length")
    fields = _sizes("llama", LLAMA, size, *names, "tie_embeddings")
    others = dict(norm="rmsnorm", mlp="swiglu", use_bias=False, rotary_fraction=1.0)
    return _sequential(fields) | others


def _sizes(family: str, table: dict[str, Any], size: str, *names: str) -> dict[str, Any]:
    """Returns an entry of a table as fields with these names."""
    if size not in table:
        raise UserError(f"there is no {family} of size {size!r}; {suggestion(size, list(table))}")
    return dict(zip(names, table[size], strict=True))


def _sequential(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields with attention before the MLP, and with the initial weights of GPT-2."""
    std = 0.02
    weights = dict(init_std=std, output_init_std=std / (2 * fields["n_layers"]) ** 0.5)
    return fields | weights | dict(parallel_residual=False)
