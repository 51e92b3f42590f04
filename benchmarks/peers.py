"""The peer: the same GPT-NeoX model and train step in plain PyTorch, as one would write it today.

Parallel residual, two LayerNorms, partial rotary positions, exact GELU, biases, an untied head or a
factored one; flash attention where `scaled_dot_product_attention` has it, and fused AdamW. In
float32, or on CUDA under autocast to bfloat16 with float32 parameters, as ours computes.
B: sequences; L: tokens; D: hidden width; H, K: heads, size of one; V: padded vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from bottleneck.config import Config, ModelConfig


class Attention(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        D = config.d_model
        self.n_heads, self.rotary_size = config.n_heads, config.rotary_size
        self.query_key_value = nn.Linear(D, 3 * D)
        self.output = nn.Linear(D, D)

    def forward(self, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        B, L, D = hidden.shape
        of_heads = self.query_key_value(hidden).view(B, L, 3, self.n_heads, D // self.n_heads)
        query, key, value = of_heads.permute(2, 0, 3, 1, 4)  # each [B, H, L, K]
        query, key = self.rotate(query, cos, sin), self.rotate(key, cos, sin)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.output(mixed.transpose(1, 2).reshape(B, L, D))

    def rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        turned, still = x[..., : self.rotary_size], x[..., self.rotary_size :]
        one, other = turned.chunk(2, dim=-1)
        turned = turned * cos + torch.cat([-other, one], dim=-1) * sin
        return torch.cat([turned.to(x.dtype), still], dim=-1)


class Block(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        D, F_ = config.d_model, config.mlp_width
        self.attention_norm = nn.LayerNorm(D, eps=config.norm_epsilon)
        self.attention = Attention(config)
        self.mlp_norm = nn.LayerNorm(D, eps=config.norm_epsilon)
        self.up, self.down = nn.Linear(D, F_), nn.Linear(F_, D)

    def forward(self, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        attended = self.attention(self.attention_norm(hidden), cos, sin)
        return hidden + attended + self.down(functional.gelu(self.up(self.mlp_norm(hidden))))


class GPTNeoX(nn.Module):
    """(inputs, targets), int64 [B, L] → mean cross-entropy, nats."""

    def __init__(self, config: ModelConfig, length: int):
        super().__init__()
        D, V, R = config.d_model, config.padded_vocab_size, config.head_rank
        self.embedding = nn.Embedding(V, D)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.final_norm = nn.LayerNorm(D, eps=config.norm_epsilon)
        self.head = nn.Linear(R or D, V, bias=False)
        self.basis = nn.Identity() if R is None else nn.Linear(D, R, bias=False)
        exponent = torch.arange(0, config.rotary_size, 2) / config.rotary_size
        angle = torch.arange(length)[:, None] * config.rotary_theta**-exponent
        self.register_buffer("cos", angle.cos().repeat(1, 2), persistent=False)
        self.register_buffer("sin", angle.sin().repeat(1, 2), persistent=False)

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(inputs)
        for block in self.blocks:
            hidden = block(hidden, self.cos, self.sin)
        logits = self.head(self.basis(self.final_norm(hidden)))
        return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def load_params(model: GPTNeoX, params: dict[str, Any]) -> None:
    """Gives the model our parameters, in NumPy; ours are [inputs, outputs], its are transposed."""

    def put(ours: dict[str, Any]) -> Iterator[tuple[nn.Module, str, Any]]:
        yield model.embedding, "weight", ours["embedding"]["rows"]
        yield model.head, "weight", ours["head"]["rows"]
        if "basis" in ours["head"]:
            yield model.basis, "weight", ours["head"]["basis"]
        yield from norm(model.final_norm, ours["final_norm"])
        blocks = ours["blocks"]
        for i, block in enumerate(model.blocks):
            yield from norm(block.attention_norm, blocks["attention_norm"], i)
            yield from norm(block.mlp_norm, blocks["mlp_norm"], i)
            yield from linear(block.up, [blocks["mlp"]["up"]], i)
            yield from linear(block.down, [blocks["mlp"]["down"]], i)
            attention = blocks["attention"]
            qkv = [attention[name] for name in ("query", "key", "value")]
            yield from linear(block.attention.query_key_value, qkv, i)
            yield from linear(block.attention.output, [attention["output"]], i)

    def norm(module: nn.Module, ours: dict[str, Any], i: Any = ...) -> Iterator[Any]:
        yield module, "weight", ours["scale"][i]
        yield module, "bias", ours["bias"][i]

    def linear(module: nn.Module, parts: list[dict[str, Any]], i: int) -> Iterator[Any]:
        yield module, "weight", np.concatenate([part["kernel"][i] for part in parts], axis=1).T
        yield module, "bias", np.concatenate([part["bias"][i] for part in parts])

    with torch.no_grad():
        for module, name, value in put(params):
            getattr(module, name).copy_(torch.from_numpy(np.array(value)))


def make_step(
    config: Config, model: GPTNeoX, *, compiled: bool, device: str = "cpu"
) -> Callable[[Any, Any], torch.Tensor]:
    """(inputs, targets) → the mean loss, after forward, backward, clipping and AdamW's update."""
    optimizer_config = config.optimizer
    model = model.to(device)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2]},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=optimizer_config.learning_rate,
        betas=(optimizer_config.beta1, optimizer_config.beta2),
        eps=optimizer_config.epsilon,
        weight_decay=optimizer_config.weight_decay,
        fused=True,
    )
    forward = torch.compile(model) if compiled else model
    half = device == "cuda" and config.compute.dtype == "bfloat16"

    def step(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = forward(inputs, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if optimizer_config.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, optimizer_config.clip_norm, foreach=True)
        optimizer.step()
        return loss.detach()

    return step
