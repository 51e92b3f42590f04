"""Counts of a model's parameters and of the floating-point operations of its training.

D: hidden width; F: MLP width; V: padded vocabulary; R: rank of the head; L: tokens in a sequence;
N: total parameters, embeddings and head included, unless a name says `non_embedding`.
"""

from __future__ import annotations

from dataclasses import dataclass

from bottleneck.config import ModelConfig


@dataclass(frozen=True)
class ParameterCount:
    """The number of parameters in each part of a model."""

    embedding: int  # token and position tables; `head` counts a tied token table
    layers: int  # attention, MLP and norms of all layers, and the final norm
    head: int

    @property
    def total(self) -> int:
        """N."""
        return self.embedding + self.layers + self.head

    @property
    def non_embedding(self) -> int:
        """N without the tables of tokens and positions and without the head."""
        return self.layers


@dataclass(frozen=True)
class FlopCount:
    """Floating-point operations of one token's forward pass; a multiply-add counts as two."""

    layers: float  # the matrices of all layers
    attention: float  # scores and mixed values, over the whole square of positions
    head: float

    def training(self, *, causal_halved: bool) -> float:
        """Returns the FLOPs of forward and backward, 3 × forward, without recomputation.

        `causal_halved` counts only the half of attention's square that a causal mask keeps.
        """
        attention = self.attention / 2 if causal_halved else self.attention
        return 3 * (self.layers + attention + self.head)


def head_parameters(config: ModelConfig) -> int:
    if config.head_rank is None:
        return config.padded_vocab_size * config.d_model
    return config.head_rank * (config.padded_vocab_size + config.d_model)


def layer_matrix_parameters(config: ModelConfig) -> int:
    """Returns the parameters of one layer's matrices, without biases and norms."""
    D, F = config.d_model, config.mlp_width
    attention = 2 * D * D + 2 * D * config.kv_heads * config.head_size
    return attention + (3 if config.mlp == "swiglu" else 2) * D * F


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Returns exact counts, including padded rows of the vocabulary."""
    D, F, V = config.d_model, config.mlp_width, config.padded_vocab_size
    norm = D if config.norm == "rmsnorm" else 2 * D
    layer = layer_matrix_parameters(config) + 2 * norm
    if config.use_bias:
        layer += 2 * D + 2 * config.kv_heads * config.head_size
        layer += D + (2 if config.mlp == "swiglu" else 1) * F
    embedding = 0 if config.tie_embeddings else V * D
    if config.position == "learned":
        embedding += config.max_length * D
    return ParameterCount(embedding, config.n_layers * layer + norm, head_parameters(config))


def flops_per_token(config: ModelConfig, sequence_length: int) -> FlopCount:
    """Counts matrix products only, as MFU is usually reported (Chowdhery et al. 2022, app. B)."""
    return FlopCount(
        layers=2.0 * config.n_layers * layer_matrix_parameters(config),
        attention=4.0 * config.n_layers * sequence_length * config.d_model,
        head=2.0 * head_parameters(config),
    )
