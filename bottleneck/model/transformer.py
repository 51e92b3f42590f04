"""A decoder-only transformer; fields of the config make it a Pythia, a GPT-2 or a Llama.

B: sequences; L: tokens; D: hidden width; F: width of the MLP.
Layers are stacked, [n_layers, ...], and scanned, so compile time does not grow with depth.
Parameters carry the logical names of their own axes, without that of the layers. `ModelConfig`
decides the parameters, `ComputeConfig` how the device computes with them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from bottleneck.config import ComputeConfig, ModelConfig
from bottleneck.model.head import Embedding, make_head
from bottleneck.model.kernels.attention import causal_attention
from bottleneck.model.kernels.gelu import exact_gelu
from bottleneck.model.kernels.linear import Linear, projections
from bottleneck.model.kernels.remat import PROJECTED, WIDE, scan_layers
from bottleneck.model.kernels.rotary import rotate
from bottleneck.parallel import mesh as mesh_lib
from bottleneck.parallel.mesh import constrain

Params = dict[str, Any]
Observe = Callable[[jax.Array], Any]  # hidden [B, L, D] → a small tree of statistics
_DEFAULT = ComputeConfig()


def _linear(
    config: ModelConfig,
    compute: ComputeConfig,
    rngs: nnx.Rngs,
    axes: tuple[str, str],
    kept_as: str | None = None,
) -> Linear:
    """A linear map from one logical axis to another; `kept_as` names its outputs for remat."""
    D, kv_inner = config.d_model, config.kv_heads * config.head_size
    sizes = {"embed": D, "heads": D, "kv_heads": kv_inner, "mlp": config.mlp_width}
    std = config.output_weight_std if axes[1] == "embed" else config.weight_std
    return Linear(
        *(sizes[axis] for axis in axes),
        kept_as=kept_as,
        use_bias=config.use_bias,
        dtype=jnp.dtype(compute.dtype),
        kernel_init=nnx.initializers.normal(std),
        kernel_metadata={"axes": axes},
        bias_metadata={"axes": axes[1:]},
        rngs=rngs,
    )


def _norm(config: ModelConfig, rngs: nnx.Rngs) -> nnx.LayerNorm | nnx.RMSNorm:
    axes = {"axes": ("norm",)}
    shared: dict[str, Any] = dict(dtype=jnp.float32, scale_metadata=axes, rngs=rngs)
    shared["epsilon"] = config.norm_epsilon
    if config.norm == "rmsnorm":
        return nnx.RMSNorm(config.d_model, **shared)
    # The fast variance, E[x²] − E[x]², cancels badly if a hidden state has a large mean.
    return nnx.LayerNorm(config.d_model, **shared, use_fast_variance=False, bias_metadata=axes)


class Attention(nnx.Module):
    def __init__(self, config: ModelConfig, compute: ComputeConfig, rngs: nnx.Rngs):
        self.config, self.kernel = config, compute.attention
        linear = functools.partial(_linear, config, compute, rngs)
        self.query = linear(("embed", "heads"), PROJECTED)
        self.key = linear(("embed", "kv_heads"), PROJECTED)
        self.value = linear(("embed", "kv_heads"), PROJECTED)
        self.output = linear(("heads", "embed"), PROJECTED)

    def __call__(self, hidden_BxLxD: jax.Array) -> jax.Array:
        config = self.config
        B, L, _ = hidden_BxLxD.shape
        linears = (self.query, self.key, self.value)
        query, key, value = (
            part.reshape(B, L, -1, config.head_size) for part in projections(linears, hidden_BxLxD)
        )
        if config.position == "rotary":
            query = rotate(query, config.rotary_size, config.rotary_theta)
            key = rotate(key, config.rotary_size, config.rotary_theta)
        mixed = causal_attention(query, key, value, self.kernel)
        return self.output(mixed.reshape(B, L, config.d_model))


class Mlp(nnx.Module):
    def __init__(self, config: ModelConfig, compute: ComputeConfig, rngs: nnx.Rngs):
        self.kind = config.mlp
        linear = functools.partial(_linear, config, compute, rngs)
        self.up = linear(("embed", "mlp"), WIDE)
        if self.kind == "swiglu":
            self.gate = linear(("embed", "mlp"), WIDE)
        self.down = linear(("mlp", "embed"))

    def __call__(self, hidden_BxLxD: jax.Array) -> jax.Array:
        inner = self.up(hidden_BxLxD)
        if self.kind == "swiglu":
            return self.down(jax.nn.silu(self.gate(hidden_BxLxD)) * inner)
        if self.kind == "gelu_tanh":
            return self.down(jax.nn.gelu(inner, approximate=True))
        return self.down(exact_gelu(inner))


class Block(nnx.Module):
    def __init__(self, config: ModelConfig, compute: ComputeConfig, rngs: nnx.Rngs):
        self.parallel_residual = config.parallel_residual
        self.dtype = jnp.dtype(compute.dtype)
        self.attention_norm = _norm(config, rngs)
        self.attention = Attention(config, compute, rngs)
        self.mlp_norm = _norm(config, rngs)
        self.mlp = Mlp(config, compute, rngs)

    def __call__(self, hidden_BxLxD: jax.Array) -> jax.Array:
        attended = self.attention(self.attention_norm(hidden_BxLxD).astype(self.dtype))
        if not self.parallel_residual:
            hidden_BxLxD = hidden_BxLxD + attended
        transformed = self.mlp(self.mlp_norm(hidden_BxLxD).astype(self.dtype))
        if self.parallel_residual:
            hidden_BxLxD = hidden_BxLxD + attended
        return constrain(hidden_BxLxD + transformed, "batch", "length", None)


class Transformer(nnx.Module):
    """Maps tokens to hidden states after the final norm, which `head` turns into logits."""

    def __init__(self, config: ModelConfig, compute: ComputeConfig, rngs: nnx.Rngs):
        self.config, self.compute = config, compute
        if not config.tie_embeddings:
            self.embedding = Embedding(config, rngs)
        if config.position == "learned":
            shape = (config.max_length, config.d_model)
            rows = config.weight_std * jax.random.normal(rngs.params(), shape)
            self.positions = nnx.Param(rows, axes=("position", "embed"))

        @nnx.split_rngs(splits=config.n_layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stacked_blocks(rngs: nnx.Rngs) -> Block:
            return Block(config, compute, rngs)

        self.blocks = stacked_blocks(rngs)
        self.final_norm = _norm(config, rngs)
        self.head = make_head(config, rngs)

    def __call__(
        self, tokens_BxL: jax.Array, observe: Observe | None = None
    ) -> tuple[jax.Array, Any]:
        """Returns the hidden states [B, L, D] after the final norm, and statistics of each depth.

        Depth 0 is the embedding, depth i < n_layers the output of layer i, and depth n_layers the
        output of the final norm.

        Args:
            observe: called on the hidden states of each depth. Its results are stacked,
                [n_layers + 1, ...], and returned second; None without it.
        """
        config, compute = self.config, self.compute
        embedding: Any = self.head if config.tie_embeddings else self.embedding
        hidden_BxLxD = embedding.embed(tokens_BxL)
        if config.position == "learned":
            hidden_BxLxD = hidden_BxLxD + self.positions[: tokens_BxL.shape[1]]
        hidden_BxLxD = hidden_BxLxD.astype(compute.dtype)
        # Look tokens up on the devices that hold the table's columns, then move the result to those
        # that hold the sequences. Otherwise the compiler may gather the table or its gradient.
        hidden_BxLxD = constrain(hidden_BxLxD, "lookup", "length", "embed")
        hidden_BxLxD = constrain(hidden_BxLxD, "batch", "length", None)

        block_graph, block_params = nnx.split(self.blocks)

        def layer(hidden: jax.Array, params: Any) -> tuple[jax.Array, Any]:
            seen = None if observe is None else observe(hidden)
            return nnx.merge(block_graph, params)(hidden), seen

        hidden_BxLxD, seen = scan_layers(layer, hidden_BxLxD, block_params, compute.remat)
        hidden_BxLxD = self.final_norm(hidden_BxLxD).astype(compute.dtype)
        hidden_BxLxD = constrain(hidden_BxLxD, "batch", "length", None)
        if observe is not None:
            last = observe(hidden_BxLxD)
            seen = jax.tree.map(lambda some, one: jnp.concatenate([some, one[None]]), seen, last)
        return hidden_BxLxD, seen


def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Returns fresh float32 parameters, a nested dict; jit it with output shardings for shards."""
    return nnx.to_pure_dict(nnx.state(Transformer(config, _DEFAULT, nnx.Rngs(params=key))))


def graph(config: ModelConfig, compute: ComputeConfig = _DEFAULT) -> nnx.GraphDef:
    """Returns the module without parameters: `nnx.merge(graph(config), params)` is the model."""
    return _abstract(config, compute)[0]


@functools.cache  # building a model takes a tenth of a second, and a start asks for it five times
def _abstract(config: ModelConfig, compute: ComputeConfig) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: Transformer(config, compute, nnx.Rngs(0))))


def logical_axes(config: ModelConfig) -> dict[str, Any]:
    """Returns the logical names of each parameter's dimensions, in the tree of the parameters.

    The axis of the layers is named None.
    """

    def names(variable: nnx.Variable) -> tuple[str | None, ...]:
        own = variable.get_metadata("axes")
        return (None,) * (len(variable.shape) - len(own)) + tuple(own)

    state = _abstract(config, _DEFAULT)[1]
    axes = jax.tree.map(names, state, is_leaf=lambda node: isinstance(node, nnx.Variable))
    return nnx.to_pure_dict(axes)


def shardings(config: ModelConfig, mesh: Mesh) -> dict[str, Any]:
    """Returns the sharding of each parameter on a mesh, in the tree of the parameters."""
    axes = logical_axes(config)
    if config.head_rank is not None and config.head_rank % mesh.shape["fsdp"] == 0:
        axes["head"]["rows"] = ("vocab", "embed")  # split like the columns of a full head
    return mesh_lib.shardings(mesh, axes)
