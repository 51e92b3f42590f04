"""The probes of a run: the head's spectrum, the loss at every rank, the geometry of hidden states.

B: sequences; L: tokens; D: hidden width; V: rows of the head. Probes have compiled programs of
their own over fixed held-out tokens, so that the train step never pays for them: one reads the
model (hidden states, their sums, the head's small core); the host takes the core's SVD in float64;
one more takes the losses at all ranks, once for each kind of truncation.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from bottleneck.config import Config
from bottleneck.model import transformer
from bottleneck.model.transformer import Params
from bottleneck.parallel import mesh as mesh_lib
from bottleneck.probes import gap, geometry, spectral_metrics, spectrum, truncation


@dataclass(frozen=True)
class ProbeRecord:
    """What a probe found: scalars of the held-out loss, scalars of the probe, and arrays."""

    evaluation: dict[str, float]
    scalars: dict[str, float]
    arrays: dict[str, np.ndarray]

    def headline(self) -> str:
        """The numbers that a person watching wants."""
        return (
            f"held-out loss {self.evaluation['loss']:.4f} ± {self.evaluation['loss_se']:.4f}, "
            f"singular entropy {self.scalars['singular_entropy']:.3f}, "
            f"effective rank {self.scalars['effective_rank']:.1f}"
        )


class _Reading(NamedTuple):
    """What the device reads off the model."""

    hidden: jax.Array  # [B, L, D], after the final norm
    unit_sums: geometry.UnitSum  # of each depth, [n_layers + 1, D] and [n_layers + 1]
    second_moment: jax.Array  # [D, D]
    mean_norm: jax.Array
    head: spectrum.ReducedHead


class Prober:
    """Measures a model on the same held-out tokens each time."""

    def __init__(self, config: Config, mesh: Mesh, held_out: dict[str, np.ndarray]):
        """Puts the tokens on the mesh; `held_out` is as `data.batches.held_out` gives it."""
        self._config = config
        self._ranks = config.probe_ranks
        self._n_micro = -(-len(held_out["inputs"]) // self._micro_size)
        padding = self._n_micro * self._micro_size - len(held_out["inputs"])
        padded = {k: np.pad(v, ((0, padding), (0, 0))) for k, v in held_out.items()}
        self._weights, self._documents = padded["weights"], padded["documents"]
        by_row, replicated = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)
        self._tokens = {
            name: jax.make_array_from_callback(
                padded[name].shape, by_row, functools.partial(padded[name].__getitem__)
            )
            for name in ("inputs", "targets", "weights")
        }
        self._graph = transformer.graph(config.model)
        self._read = jax.jit(
            self._read_model,
            out_shardings=_Reading(by_row, replicated, replicated, replicated, replicated),  # type: ignore[arg-type]
        )
        self._sweep = jax.jit(self._losses_by_rank, out_shardings=replicated)

    @property
    def _micro_size(self) -> int:
        """Sequences that go through the model together: as many as in training."""
        return self._config.train.batch_size // self._config.train.accumulation_steps

    def measure(self, params: Params) -> ProbeRecord:
        """Everything there is to measure at this moment of training."""
        config = self._config
        reading = self._read(params, self._tokens)
        core = spectrum.head_core(reading.head)
        values = self._singular_values(reading.head, centred=False)
        centred = self._singular_values(reading.head, centred=True)
        anisotropy = np.asarray(geometry.anisotropy_of(reading.unit_sums), np.float64)
        cuts = {
            "plain": truncation.plain(core),
            "whitened": truncation.whitened(core, np.asarray(reading.second_moment)),
        }
        sweeps = {name: self._rank_sweep(params, reading.hidden, cut) for name, cut in cuts.items()}
        errors = spectral_metrics.w_error(values)
        scalars = {
            "singular_entropy": spectral_metrics.singular_entropy(values),
            "singular_entropy_centred": spectral_metrics.singular_entropy(centred),
            "effective_rank": spectral_metrics.effective_rank(values),
            "stable_rank": spectral_metrics.stable_rank(values),
            **{f"w_error/{rank}": float(errors[rank - 1]) for rank in self._ranks},
            **{
                f"gap/{name}/{rank}": float(value)
                for name, sweep in sweeps.items()
                for rank, value in zip(self._ranks, sweep.gap, strict=True)
            },
            **{f"anisotropy/{depth}": float(value) for depth, value in enumerate(anisotropy)},
        }
        arrays: dict[str, Any] = {
            "singular_values": values,
            "singular_values_centred": centred,
            "ranks": np.asarray(self._ranks),
            "anisotropy": anisotropy,
            "mean_hidden_norm": np.float64(reading.mean_norm),
            # What the quadratic bound on the gap is made of: σ of W_centred C^{1/2}.
            "whitened_singular_values": truncation.whitened(
                spectrum.head_core(reading.head, centred=True), np.asarray(reading.second_moment)
            ).singular_values,
        }
        for name, sweep in sweeps.items():
            suffix = "" if name == "plain" else f"_{name}"
            arrays[f"loss_at_rank{suffix}"] = sweep.loss
            arrays[f"gap_{name}"], arrays[f"gap_{name}_se"] = sweep.gap, sweep.gap_se
        plain = sweeps["plain"]
        arrays["document_losses"] = plain.full_document_losses
        arrays["document_tokens"] = plain.document_tokens
        evaluation = {"loss": plain.full_loss, "loss_se": plain.full_loss_se}
        assert config.model.d_model == self._ranks[-1]
        return ProbeRecord(evaluation, scalars, arrays)

    def _read_model(self, params: Params, tokens: dict[str, jax.Array]) -> _Reading:
        model = nnx.merge(self._graph, params)

        def one_micro_batch(
            _: None, batch: dict[str, jax.Array]
        ) -> tuple[None, tuple[jax.Array, geometry.UnitSum]]:
            observe = functools.partial(geometry.unit_sum, weights=batch["weights"])
            return None, model(batch["inputs"], observe=observe)

        def split(array: jax.Array) -> jax.Array:
            # As in training: each device holds rows of every micro-batch, and none has to move.
            divided = array.reshape(-1, self._n_micro, *array.shape[1:])
            return mesh_lib.constrain(jnp.moveaxis(divided, 1, 0), None, "batch", "length")

        _, (hidden, sums) = jax.lax.scan(one_micro_batch, None, jax.tree.map(split, tokens))
        hidden = jnp.moveaxis(hidden, 0, 1).reshape(-1, *hidden.shape[2:])
        return _Reading(
            hidden,
            jax.tree.map(lambda some: jnp.sum(some, axis=0), sums),
            geometry.second_moment(hidden, tokens["weights"]),
            geometry.mean_norm(hidden, tokens["weights"]),
            spectrum.reduce_head(model.head.factors(), self._config.model.vocab_size),
        )

    def _singular_values(self, head: spectrum.ReducedHead, *, centred: bool) -> np.ndarray:
        return spectrum.spectrum(head, self._config.model.vocab_size, centred=centred).values

    def _losses_by_rank(
        self, params: Params, hidden: jax.Array, targets: jax.Array, cut: tuple[Any, Any]
    ) -> jax.Array:
        encode, decode = cut
        return gap.losses_by_rank(
            nnx.merge(self._graph, params).head.factors(),
            hidden,
            targets,
            encode,
            decode,
            ranks=self._ranks,
            vocab_size=self._config.model.vocab_size,
            chunk=self._config.model.loss_chunk,
        )

    def _rank_sweep(
        self, params: Params, hidden: jax.Array, cut: truncation.Truncation
    ) -> gap.RankSweep:
        maps = (np.float32(cut.encode), np.float32(cut.decode))
        losses = self._sweep(params, hidden, self._tokens["targets"], maps)
        return gap.summarise(np.asarray(losses), self._weights, self._documents, self._ranks)
