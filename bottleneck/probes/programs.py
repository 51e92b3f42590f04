"""The compiled programs of a probe: what the device does. `probing` makes sense of it on the host.

B: held-out sequences; L: tokens; D: hidden width; n: ranks. Three programs, none of them part of
the train step: `read` the model (hidden states, their sums, the head's small core), `sweep` the
losses over all ranks, `survive` for the share of the gradient that the head lets through.
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

Tokens = dict[str, jax.Array]  # as a training batch: inputs, targets, weights, [B, L] each


class LayerSums(NamedTuple):
    """Of hidden states at each depth: [n_layers + 1, ...]."""

    units: geometry.UnitSum
    centred: geometry.PairSum  # pairs within a micro-batch, less its mean


class Reading(NamedTuple):
    """What is read off the model; all but `hidden` is small, and on every device."""

    hidden: jax.Array  # [B, L, D], after the final norm
    layers: LayerSums
    without_bias: geometry.UnitSum  # of `hidden` less the final norm's bias
    second_moment: jax.Array  # [D, D], of `hidden`
    mean: jax.Array  # [D]
    mean_norm: jax.Array
    head: spectrum.ReducedHead


class ProbePrograms:
    """The programs for so many held-out sequences, filled up to whole micro-batches.

    read(params, tokens) → Reading; sweep(params, hidden, targets, encode, decode) → losses
    [B, L, n] and `Predictions`; survive(params, hidden, tokens, inverse) → float32 scalar. Jitted,
    or compiled once `compile` has been called.
    """

    def __init__(self, config: Config, mesh: Mesh, n_sequences: int):
        self._config = config
        # Through the model go as many sequences together as in training, or fewer if there are.
        n_shards = mesh.shape["replica"] * mesh.shape["fsdp"]
        at_most = config.train.batch_size // config.compute.accumulation_steps
        micro_size = min(at_most, -(-n_sequences // n_shards) * n_shards)
        self._n_micro = -(-n_sequences // micro_size)
        self.n_sequences = self._n_micro * micro_size
        self._graph = transformer.graph(config.model, config.compute)
        self._by_row, self._everywhere = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)
        by_row: Any = self._by_row
        everywhere: Any = self._everywhere
        jit = functools.partial(jax.jit, compiler_options=mesh_lib.compiler_options(mesh))
        self.read = jit(self._read, out_shardings=Reading(by_row, *(everywhere,) * 6))
        self.sweep = jit(self._sweep, out_shardings=self._everywhere)
        self.survive = jit(self._survive, out_shardings=self._everywhere)

    def lower(self, params: Any) -> dict[str, Any]:
        """The programs by name, traced for abstract parameters as `TrainProgram` has them."""
        model = self._config.model
        shape = (self.n_sequences, self._config.train.sequence_length)
        tokens = {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=self._by_row)
            for name, dtype in BATCH_TYPES.items()
        }
        hidden = jax.ShapeDtypeStruct(
            (*shape, model.d_model),
            jnp.dtype(self._config.compute.dtype),
            sharding=self._by_row,
        )
        square = jax.ShapeDtypeStruct(
            (model.d_model, model.d_model), jnp.float32, sharding=self._everywhere
        )
        return {
            "read": self.read.lower(params, tokens),
            "sweep": self.sweep.lower(params, hidden, tokens["targets"], square, square),
            "survive": self.survive.lower(params, hidden, tokens, square),
        }

    def compile(self, params: Any) -> None:
        """Compiles ahead of the first probe, which else does it; `params` as for `lower`."""
        for name, program in self.lower(params).items():
            setattr(self, name, program.compile())

    def _read(self, params: Params, tokens: Tokens) -> Reading:
        model = nnx.merge(self._graph, params)

        def one_micro_batch(_: None, batch: Tokens) -> tuple[None, tuple[jax.Array, LayerSums]]:
            def observe(hidden: jax.Array) -> LayerSums:
                weights = batch["weights"]
                return LayerSums(
                    geometry.unit_sum(hidden, weights), geometry.centred_pairs(hidden, weights)
                )

            return None, model(batch["inputs"], observe=observe)

        def split(array: jax.Array) -> jax.Array:
            # As in training: each device holds rows of every micro-batch, and none has to move.
            divided = array.reshape(-1, self._n_micro, *array.shape[1:])
            return mesh_lib.constrain(jnp.moveaxis(divided, 1, 0), None, "batch", "length")

        _, (hidden, sums) = jax.lax.scan(one_micro_batch, None, jax.tree.map(split, tokens))
        hidden = jnp.moveaxis(hidden, 0, 1).reshape(-1, *hidden.shape[2:])
        weights = tokens["weights"]
        bias = getattr(model.final_norm, "bias", None)
        return Reading(
            hidden,
            jax.tree.map(lambda some: jnp.sum(some, axis=0), sums),
            geometry.unit_sum(hidden if bias is None else hidden - bias[...], weights),
            geometry.second_moment(hidden, weights),
            geometry.mean(hidden, weights),
            geometry.mean_norm(hidden, weights),
            spectrum.reduce_head(model.head.factors()),
        )

    def _sweep(
        self,
        params: Params,
        hidden: jax.Array,
        targets: jax.Array,
        encode: jax.Array,
        decode: jax.Array,
    ) -> tuple[jax.Array, Predictions | None]:
        return token_sweep(
            nnx.merge(self._graph, params).head.factors(),
            hidden,
            targets,
            encode,
            decode,
            ranks=self._config.probe_ranks,
        )

    def _survive(
        self, params: Params, hidden: jax.Array, tokens: Tokens, inverse: jax.Array
    ) -> jax.Array:
        def first_micro_batch(array: jax.Array) -> jax.Array:
            return array.reshape(-1, self._n_micro, *array.shape[1:])[:, 0]

        return gradient.survival(
            nnx.merge(self._graph, params).head.factors(),
            first_micro_batch(hidden),
            first_micro_batch(tokens["targets"]),
            first_micro_batch(tokens["weights"]),
            inverse,
            chunk=self._config.compute.loss_chunk,
        )
