"""The probes of a run: the head's spectrum, the loss at every rank, the geometry of hidden states.

D: hidden width. Always on the same held-out tokens. What devices compute stands in
`probe_programs`; what it means, in `bottleneck.probes`; here both are brought together: the head's
core to the host for its SVD in float64, and the maps that come of it back to the devices.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bottleneck.config import Config
from bottleneck.model.transformer import Params
from bottleneck.parallel import mesh as mesh_lib
from bottleneck.probes import geometry, gradient, spectral_metrics, spectrum, truncation
from bottleneck.probes.gap import FREQUENCY_CLASSES, RankSweep, frequency_classes, summarise
from bottleneck.probes.programs import ProbePrograms, Reading
from bottleneck.probes.token_sweep import Predictions

Scalars = dict[str, float]
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class ProbeRecord:
    """What a probe found: scalars of the held-out loss, scalars of the probe, and arrays."""

    evaluation: Scalars
    scalars: Scalars
    arrays: Arrays

    def headline(self) -> str:
        """The numbers that a person watching wants."""
        return (
            f"held-out loss {self.evaluation['loss']:.4f} ± {self.evaluation['loss_se']:.4f}, "
            f"singular entropy {self.scalars['singular_entropy']:.3f}, "
            f"effective rank {self.scalars['effective_rank']:.1f}"
        )


class Prober:
    """Measures a model on the same held-out tokens each time."""

    def __init__(
        self,
        config: Config,
        mesh: Mesh,
        held_out: dict[str, np.ndarray],
        token_counts: np.ndarray,
    ):
        """Puts the tokens on the mesh.

        Args:
            held_out: as `data.batches.held_out` gives it.
            token_counts: [vocab_size] occurrences in the training text.
        """
        self._config = config
        self._programs = ProbePrograms(config, mesh, len(held_out["inputs"]))
        filling = self._programs.n_sequences - len(held_out["inputs"])
        padded = {k: np.pad(v, ((0, filling), (0, 0))) for k, v in held_out.items()}
        self._weights, self._documents = padded["weights"], padded["documents"]
        self._classes = frequency_classes(padded["targets"], token_counts)
        self._tokens = {
            name: jax.make_array_from_callback(
                padded[name].shape,
                mesh_lib.batch_sharding(mesh),
                functools.partial(padded[name].__getitem__),
            )
            for name in ("inputs", "targets", "weights")
        }

    def compile(self, params: Any) -> None:
        """Compiles the programs ahead of the first probe, for abstract parameters."""
        self._programs.compile(params)

    def measure(self, params: Params) -> ProbeRecord:
        """Everything there is to measure at this moment of training."""
        reading = self._programs.read(params, self._tokens)
        core = spectrum.HeadCore(reading.head)
        moment = np.asarray(reading.second_moment, np.float64)
        cuts = {
            "plain": truncation.plain(core.raw),
            "whitened": truncation.whitened(core.raw, moment),
        }
        # All are under way before the first is waited for, so that none waits for the host.
        inverse = np.float32(gradient.inverse_map(cuts["plain"]))
        survival = self._programs.survive(params, reading.hidden, self._tokens, inverse)
        found = {name: self._sweep(params, reading.hidden, cut) for name, cut in cuts.items()}
        sweeps = {name: self._summarise(*some) for name, some in found.items()}
        plain = sweeps["plain"]
        parts = [
            self._of_head(core, cuts["plain"], moment),
            self._of_hidden_states(reading),
            *(self._of_sweep(name, sweep) for name, sweep in sweeps.items()),
            (
                {"gradient_survival": float(survival)},
                {
                    "ranks": plain.ranks,
                    "document_losses": plain.full_document_losses,
                    "document_tokens": plain.document_tokens,
                },
            ),
        ]
        return ProbeRecord(
            {"loss": plain.full_loss, "loss_se": plain.full_loss_se},
            {name: value for scalars, _ in parts for name, value in scalars.items()},
            {name: value for _, arrays in parts for name, value in arrays.items()},
        )

    def _of_head(
        self, core: spectrum.HeadCore, plain: truncation.Truncation, moment: np.ndarray
    ) -> tuple[Scalars, Arrays]:
        width = self._config.model.d_model
        raw = core.resolved(plain.singular_values)
        values, centred = raw.values, core.spectrum(centred=True).values
        errors = spectral_metrics.w_error(values)
        entropy, linear = (
            spectral_metrics.singular_entropy(values),
            spectral_metrics.linear_singular_entropy(values),
        )
        scalars = {
            "singular_entropy": entropy,
            "singular_entropy_normalised": spectral_metrics.normalised(entropy, width),
            "singular_entropy_linear": linear,
            "singular_entropy_linear_normalised": spectral_metrics.normalised(linear, width),
            "singular_entropy_centred": spectral_metrics.singular_entropy(centred),
            "effective_rank": spectral_metrics.effective_rank(values),
            "stable_rank": spectral_metrics.stable_rank(values),
            "participation_ratio": spectral_metrics.participation_ratio(values),
            "top_share": spectral_metrics.top_share(values),
            "tail_exponent": spectral_metrics.tail_exponent(values),
            **{f"w_error/{r}": float(errors[r - 1]) for r in self._config.probe_ranks},
        }
        return scalars, {
            "singular_values": values,
            "singular_values_centred": centred,
            "first_bounded_index": np.asarray(raw.first_bounded_index),
            # What the quadratic bound on the gap is made of: σ of W_centred C^{1/2}.
            "whitened_singular_values": truncation.whitened(core.centred, moment).singular_values,
        }

    def _of_hidden_states(self, reading: Reading) -> tuple[Scalars, Arrays]:
        raw = np.asarray(geometry.anisotropy_of(reading.layers.units), np.float64)
        pairs = reading.layers.centred
        centred = np.asarray(pairs.cosines, np.float64) / np.asarray(pairs.number)
        moment = np.asarray(reading.second_moment, np.float64)
        covariance = geometry.covariance(moment, np.asarray(reading.mean))
        moments = np.linalg.eigvalsh(moment)[::-1]
        scalars = {
            **{f"anisotropy/{depth}": float(value) for depth, value in enumerate(raw)},
            **{f"anisotropy_centred/{depth}": float(value) for depth, value in enumerate(centred)},
            "anisotropy_without_bias": float(geometry.anisotropy_of(reading.without_bias)),
            "iso_score": geometry.iso_score(covariance),
            "hidden_top_share": float(moments[0] / moments.sum()),
        }
        return scalars, {
            "anisotropy": raw,
            "anisotropy_centred": centred,
            "hidden_eigenvalues": moments,  # of C
            "mean_hidden_norm": np.asarray(reading.mean_norm, np.float64),
        }

    def _sweep(
        self, params: Params, hidden: jax.Array, cut: truncation.Truncation
    ) -> tuple[jax.Array, Predictions | None]:
        maps = (np.float32(cut.encode), np.float32(cut.decode))
        return self._programs.sweep(params, hidden, self._tokens["targets"], *maps)

    def _summarise(self, losses: jax.Array, predictions: Predictions | None) -> RankSweep:
        return summarise(
            np.asarray(losses),
            weights=self._weights,
            documents=self._documents,
            classes=self._classes,
            ranks=self._config.probe_ranks,
            predictions=predictions,
        )

    def _of_sweep(self, name: str, sweep: RankSweep) -> tuple[Scalars, Arrays]:
        assert sweep.anatomy is not None
        of_gap = {
            f"gap/{name}": sweep.gap,
            **({"gap/predicted": sweep.anatomy.predicted} if name == "plain" else {}),
        }
        scalars = {
            f"{key}/{rank}": float(value)
            for key, values in of_gap.items()
            for rank, value in zip(sweep.ranks, values, strict=True)
        }
        suffix = "" if name == "plain" else f"_{name}"
        return scalars, {
            f"loss_at_rank{suffix}": sweep.loss,
            f"gap_{name}": sweep.gap,
            f"gap_{name}_se": sweep.gap_se,
            f"gap_{name}_token_se": sweep.gap_token_se,
            f"gap_{name}_first_order": sweep.anatomy.first_order,
            f"gap_{name}_second_order": sweep.anatomy.second_order,
            f"kl_{name}": sweep.anatomy.kl,
            f"agreement_{name}": sweep.anatomy.agreement,
            **{
                f"gap_{name}_{kind}": values
                for kind, values in zip(FREQUENCY_CLASSES, sweep.gap_by_frequency, strict=True)
            },
        }
