"""The compiled programs of a probe, apart from the train step; `prober` finishes on the host.

B: validation sequences; L: tokens; D: hidden width; n: ranks.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from bottleneck.config import Config
from bottleneck.data.batches import BATCH_TYPES
from bottleneck.model import transformer
from bottleneck.model.transformer import Params
from bottleneck.parallel import mesh as mesh_lib
from bottleneck.probes import geometry, gradient, spectrum
from bottleneck.probes.token_sweep import Predictions, token_sweep

Tokens = dict[str, jax.Array]  # inputs, targets and weights, [B, L] each, as in a training batch


class Reading(NamedTuple):
    """Results of `read`; all but `hidden` are small and on every device."""

    hidden: jax.Array  # [B, L, D], after the final norm
    layers: jax.Array  # [n_layers + 1, D + 3], `geometry.layer_sums`
    without_bias: geometry.UnitSum  # [D], of `hidden` minus the final norm's bias
    second_moment: jax.Array  # [D, D], of `hidden`
    mean: jax.Array  # [D]
    mean_norm: jax.Array
    head: spectrum.ReducedHead


class ProbePrograms:
    """The jitted programs for n validation sequences, padded to whole micro-batches.

    - read(params, tokens) returns a `Reading`.
    - sweep(params, hidden, targets, encode, decode) returns losses [B, L, n] and `Predictions`.
    - survive(params, hidden, tokens, inverse) returns a `gradient.survival`.
    """

    def __init__(self, config: Config, mesh: Mesh, n_sequences: int):
        self._config = config
        # At most as many sequences as in training pass through the model together.
        n_shards = mesh.shape["replica"] * mesh.shape["fsdp"]
        at_most = config.train.batch_size // config.compute.accumulation_steps
        micro_size = min(at_most, -(-n_sequences // n_shards) * n_shards)
        self._n_micro = -(-n_sequences // micro_size)
        self.n_sequences = self._n_micro * micro_size
        self._graph = transformer.graph(config.model, config.compute)
        by_row: Any = mesh_lib.batch_sharding(mesh)
        everywhere: Any = mesh_lib.replicated(mesh)
        self._by_row, self._everywhere = by_row, everywhere
        jit = functools.partial(jax.jit, compiler_options=mesh_lib.compiler_options(mesh))
        self.read = jit(self._read, out_shardings=Reading(by_row, *(everywhere,) * 6))
        self.sweep = jit(self._sweep, out_shardings=everywhere)
        self.survive = jit(self._survive, out_shardings=everywhere)

    def lower(self, params: Any) -> dict[str, Any]:
        """Returns the programs by name, traced for the abstract parameters of `TrainProgram`."""
        shape = (self.n_sequences, self._config.train.sequence_length)
        tokens = {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=self._by_row)
            for name, dtype in BATCH_TYPES.items()
        }
        width, dtype = self._config.model.d_model, jnp.dtype(self._config.compute.dtype)
        hidden = jax.ShapeDtypeStruct((*shape, width), dtype, sharding=self._by_row)
        square = jax.ShapeDtypeStruct((width, width), jnp.float32, sharding=self._everywhere)
        return {
            "read": self.read.lower(params, tokens),
            "sweep": self.sweep.lower(params, hidden, tokens["targets"], square, square),
            "survive": self.survive.lower(params, hidden, tokens, square),
        }

    def compile(self, params: Any) -> None:
        """Compiles before the first probe; `params` as for `lower`."""
        for name, program in self.lower(params).items():
            setattr(self, name, program.compile())

    def _read(self, params: Params, tokens: Tokens) -> Reading:
        model = nnx.merge(self._graph, params)

        def one_micro_batch(_: None, batch: Tokens) -> tuple[None, tuple[jax.Array, jax.Array]]:
            observe = functools.partial(geometry.layer_sums, weights=batch["weights"])
            return None, model(batch["inputs"], observe)

        def split(array: jax.Array) -> jax.Array:
            # As in training, each device holds rows of every micro-batch, so none move.
            divided = array.reshape(-1, self._n_micro, *array.shape[1:])
            return mesh_lib.constrain(jnp.moveaxis(divided, 1, 0), None, "batch", "length")

        _, (hidden, sums) = jax.lax.scan(one_micro_batch, None, jax.tree.map(split, tokens))
        hidden = jnp.moveaxis(hidden, 0, 1).reshape(-1, *hidden.shape[2:])
        weights = tokens["weights"]
        bias = getattr(model.final_norm, "bias", None)
        return Reading(
            hidden,
            jnp.sum(sums, axis=0),
            geometry.unit_sum(hidden if bias is None else hidden - bias[...], weights),
            geometry.second_moment(hidden, weights),
            geometry.mean(hidden, weights),
            geometry.mean_norm(hidden, weights),
            spectrum.reduce_head(model.head.factors()),
        )

    def _sweep(
        self, params: Params, hidden: jax.Array, targets: jax.Array, *maps: jax.Array
    ) -> tuple[jax.Array, Predictions]:
        factors = nnx.merge(self._graph, params).head.factors()
        return token_sweep(factors, hidden, targets, *maps, ranks=self._config.probe_ranks)

    def _survive(
        self, params: Params, hidden: jax.Array, tokens: Tokens, inverse: jax.Array
    ) -> jax.Array:
        factors = nnx.merge(self._graph, params).head.factors()
        hidden, targets, weights = (  # of the first micro-batch
            array.reshape(-1, self._n_micro, *array.shape[1:])[:, 0]
            for array in (hidden, tokens["targets"], tokens["weights"])
        )
        chunk = self._config.compute.loss_chunk
        return gradient.survival(factors, hidden, targets, weights, inverse, chunk=chunk)
