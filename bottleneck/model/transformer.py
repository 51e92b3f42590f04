"""A decoder-only transformer whose families (Pythia, GPT-2, Llama) differ by fields of the config.

B: sequences; L: tokens; D: hidden width; H, G: heads, key-value heads; K: size of one.
Layers are stacked, [n_layers, ...], and scanned, so that compile time does not grow with depth.
Every parameter carries the logical names of its own axes (without the stacking one).
`ModelConfig` decides the parameters; `ComputeConfig` decides the arithmetic on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from bottleneck.config import ComputeConfig, ModelConfig
from bottleneck.model.head import make_head
from bottleneck.model.kernels import remat
from bottleneck.model.kernels.attention import causal_attention
from bottleneck.model.kernels.cpu import computed_once, dot_general, is_one_cpu, product
from bottleneck.model.kernels.remat import named
from bottleneck.model.kernels.rotary import rotate
from bottleneck.parallel import mesh as mesh_lib
from bottleneck.parallel.chips import TPU_SUBLANES
from bottleneck.parallel.mesh import constrain, devices_along, platform

Params = dict[str, Any]
Observe = Callable[[jax.Array], Any]  # hidden [B, L, D] → a small tree of statistics
_DEFAULT = ComputeConfig()


def _linear(
    config: ModelConfig, compute: ComputeConfig, rngs: nnx.Rngs
) -> Callable[[tuple[str, str], tuple[int, int], float], nnx.Linear]:
    """(logical axes, sizes, standard deviation) → a linear map from the first axis to the last."""

    def linear(axes: tuple[str, str], sizes: tuple[int, int], std: float) -> nnx.Linear:
        return nnx.Linear(
            *sizes,
            use_bias=config.use_bias,
            dtype=jnp.dtype(compute.dtype),
            kernel_init=nnx.initializers.normal(std),
            kernel_metadata={"axes": axes},
            bias_metadata={"axes": axes[1:]},
            dot_general=dot_general,
            rngs=rngs,
        )

    return linear


def _norm(config: ModelConfig, rngs: nnx.Rngs) -> nnx.LayerNorm | nnx.RMSNorm:
    shared: dict[str, Any] = dict(
        epsilon=config.norm_epsilon,
        dtype=jnp.float32,
        scale_metadata={"axes": ("norm",)},
        rngs=rngs,
    )
    if config.norm == "rmsnorm":
        return nnx.RMSNorm(config.d_model, **shared)
    # The fast variance, E[x²] − E[x]², cancels badly where a hidden state has a large mean.
    return nnx.LayerNorm(
        config.d_model, **shared, use_fast_variance=False, bias_metadata={"axes": ("norm",)}
    )


@jax.custom_vjp
def exact_gelu(x: jax.Array) -> jax.Array:
    """x Φ(x), in float32; of jax's own, by erfc, a CPU computes two forms and drops one."""
    wide = x.astype(jnp.float32)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


def _gelu_backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    """From x alone, as by `jax.checkpoint`, which keeps a TPU from fusing it into a product."""
    wide = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * wide**2) * (2 * math.pi) ** -0.5
    return ((gradient * (_normal_cdf(wide) + wide * density)).astype(x.dtype),)


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 * (1 + jax.lax.erf(x * 2**-0.5))


exact_gelu.defvjp(lambda x: (exact_gelu(x), x), _gelu_backward)


class Attention(nnx.Module):
    def __init__(self, config: ModelConfig, compute: ComputeConfig, rngs: nnx.Rngs):
        self.config, self.kernel = config, compute.attention
        linear = _linear(config, compute, rngs)
        d_model, std = config.d_model, config.weight_std
        inner, kv_inner = d_model, config.kv_heads * config.head_size
        self.query = linear(("embed", "heads"), (d_model, inner), std)
        self.key = linear(("embed", "kv_heads"), (d_model, kv_inner), std)
        self.value = linear(("embed", "kv_heads"), (d_model, kv_inner), std)
        self.output = linear(("heads", "embed"), (inner, d_model), config.output_weight_std)

    def __call__(self, hidden_BxLxD: jax.Array) -> jax.Array:
        config = self.config
        B, L, _ = hidden_BxLxD.shape
        query, key, value = (
            named(part, remat.PROJECTED).reshape(B, L, -1, config.head_size)
            for part in self._parts(hidden_BxLxD)
        )
        if config.position == "rotary":
            query = rotate(query, config.rotary_size, config.rotary_theta)
            key = rotate(key, config.rotary_size, config.rotary_theta)
        mixed = causal_attention(query, key, value, self.kernel)
        return named(self.output(mixed.reshape(B, L, config.d_model)), remat.PROJECTED)

    def _parts(self, hidden_BxLxD: jax.Array) -> list[jax.Array]:
        """Queries, keys and values, of all heads side by side."""
        linears = (self.query, self.key, self.value)
        if not is_one_cpu():
            return [linear(hidden_BxLxD) for linear in linears]
        # A CPU is faster at one wide product than at three narrow ones.
        kernel = jnp.concatenate([linear.kernel[...] for linear in linears], axis=1)
        joined = product(hidden_BxLxD, kernel.astype(hidden_BxLxD.dtype))
        if self.config.use_bias:
            biases: list[Any] = [linear.bias for linear in linears]
            joined += jnp.concatenate([bias[...] for bias in biases]).astype(joined.dtype)
        inner, kv_inner = self.query.out_features, self.key.out_features
        return jnp.split(joined, (inner, inner + kv_inner), axis=-1)


class Mlp(nnx.Module):
    def __init__(self, config: ModelConfig, compute: ComputeConfig, rngs: nnx.Rngs):
        self.kind = config.mlp
        linear = _linear(config, compute, rngs)
        d_model, width = config.d_model, config.mlp_width
        self.up = linear(("embed", "mlp"), (d_model, width), config.weight_std)
        if self.kind == "swiglu":
            self.gate = linear(("embed", "mlp"), (d_model, width), config.weight_std)
        self.down = linear(("mlp", "embed"), (width, d_model), config.output_weight_std)

    def __call__(self, hidden_BxLxD: jax.Array) -> jax.Array:
        inner = named(self.up(hidden_BxLxD), remat.WIDE)
        if self.kind == "swiglu":
            gate = named(self.gate(hidden_BxLxD), remat.WIDE)
            return self.down(jax.nn.silu(gate) * inner)
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


class Embedding(nnx.Module):
    """Rows [V, D] of the tokens, where the head does not provide them."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        shape = (config.padded_vocab_size, config.d_model)
        rows = config.weight_std * jax.random.normal(rngs.params(), shape)
        self.rows = nnx.Param(rows, axes=("vocab", "embed"))

    def embed(self, tokens: jax.Array) -> jax.Array:
        return self.rows[...][tokens]


class Transformer(nnx.Module):
    """Tokens → hidden states after the final norm; `head` turns those into logits."""

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
        """The hidden states [B, L, D] after the final norm, and what `observe` saw of each depth.

        Depth 0 is the embedding; depth n_layers is after the final norm, where the head reads; the
        other depths are the outputs of the layers between, so that there are n_layers + 1 of them.

        Args:
            observe: called on the hidden states of each depth; its results are stacked along a
                leading axis [n_layers + 1, ...]. The second value returned is None without it.
        """
        config, compute = self.config, self.compute
        embedding: Any = self.head if config.tie_embeddings else self.embedding
        hidden_BxLxD = embedding.embed(tokens_BxL)
        if config.position == "learned":
            hidden_BxLxD = hidden_BxLxD + self.positions[: tokens_BxL.shape[1]]
        hidden_BxLxD = hidden_BxLxD.astype(compute.dtype)
        # Looked up where the columns of the table lie, then sent to where the sequences do; and so,
        # backwards, the gradient. Left to itself the compiler may gather the whole table for it.
        hidden_BxLxD = constrain(hidden_BxLxD, "lookup", "length", "embed")
        hidden_BxLxD = constrain(hidden_BxLxD, "batch", "length", None)

        block_graph, block_params = nnx.split(self.blocks)
        # Columns that do not fill its sublanes a TPU gathers in a layout that takes longer to turn
        # than to use, unless a layer's slice of the stack is made first.
        own_columns = config.d_model // devices_along("fsdp")
        slice_first = platform() == "tpu" and own_columns % TPU_SUBLANES != 0

        def layer(hidden: jax.Array, params: Any) -> tuple[jax.Array, Any]:
            hidden = computed_once(hidden)
            if slice_first:
                params = jax.lax.optimization_barrier(params)
            seen = None if observe is None else observe(hidden)
            return nnx.merge(block_graph, params)(hidden), seen

        if compute.remat != "none":
            layer = remat.checkpointed(layer, compute.remat)
        # A CPU copies what each turn of a scan stacks up for the backward pass. But only a scan
        # keeps the compiler from undoing rematerialisation.
        unroll = compute.remat == "none" and platform() == "cpu"
        hidden_BxLxD, seen = jax.lax.scan(layer, hidden_BxLxD, block_params, unroll=unroll)
        hidden_BxLxD = self.final_norm(hidden_BxLxD).astype(compute.dtype)
        hidden_BxLxD = constrain(hidden_BxLxD, "batch", "length", None)
        if observe is not None:
            last = observe(hidden_BxLxD)
            seen = jax.tree.map(lambda some, one: jnp.concatenate([some, one[None]]), seen, last)
        return hidden_BxLxD, seen


def _split(config: ModelConfig, key: jax.Array) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(Transformer(config, _DEFAULT, nnx.Rngs(params=key)))


def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Fresh float32 parameters, a nested dict; jit it with output shardings to make shards."""
    return nnx.to_pure_dict(_split(config, key)[1])


def graph(config: ModelConfig, compute: ComputeConfig = _DEFAULT) -> nnx.GraphDef:
    """The module without its parameters: `nnx.merge(graph(config), params)` is the model."""
    return nnx.split(nnx.eval_shape(lambda: Transformer(config, compute, nnx.Rngs(0))))[0]


def logical_axes(config: ModelConfig) -> dict[str, Any]:
    """The tree of the parameters with, for each, the logical names of its dimensions.

    Stacked parameters have None for the layers before their own names.
    """
    state = nnx.eval_shape(lambda: nnx.split(Transformer(config, _DEFAULT, nnx.Rngs(0)))[1])

    def names(variable: nnx.Variable) -> tuple[str | None, ...]:
        own = variable.get_metadata("axes")
        return (None,) * (len(variable.shape) - len(own)) + tuple(own)

    axes = jax.tree.map(names, state, is_leaf=lambda node: isinstance(node, nnx.Variable))
    return nnx.to_pure_dict(axes)


def shardings(config: ModelConfig, mesh: Mesh) -> dict[str, Any]:
    """The tree of the parameters with, for each, where it lives on a mesh."""
    axes = logical_axes(config)
    if config.head_rank is not None and config.head_rank % mesh.shape["fsdp"] == 0:
        axes["head"]["rows"] = ("vocab", "embed")  # shared out as the columns of a full head are
    return mesh_lib.shardings(mesh, axes)
