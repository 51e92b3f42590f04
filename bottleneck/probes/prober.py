"""The probe of a run: the head's spectrum, the loss at every rank, the geometry of hidden states.

It always uses the same validation tokens. `programs` runs on the devices. The host takes the SVD of
the head's core in float64 and sends the resulting maps back. D: hidden width.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bottleneck.config import Config
from bottleneck.model.transformer import Params
from bottleneck.parallel import mesh as mesh_lib
from bottleneck.probes import geometry, gradient, spectral_metrics, spectrum, truncation
from bottleneck.probes.gap import frequency_classes, summarise
from bottleneck.probes.programs import ProbePrograms
from bottleneck.runs.probe import Probe


class Prober:
    """Measures a model on the same validation tokens each time."""

    def __init__(
        self,
        config: Config,
        mesh: Mesh,
        validation_windows: dict[str, np.ndarray],
        token_counts: np.ndarray,
    ):
        """Puts the arrays of `data.batches.validation_windows` on the mesh.

        `token_counts` are the occurrences [vocab_size] in the training text.
        """
        self._config = config
        self._programs = ProbePrograms(config, mesh, len(validation_windows["inputs"]))
        filling = self._programs.n_sequences - len(validation_windows["inputs"])
        padded = {k: np.pad(v, ((0, filling), (0, 0))) for k, v in validation_windows.items()}
        self._summarise = functools.partial(
            summarise,
            weights=padded["weights"],
            documents=padded["documents"],
            classes=frequency_classes(padded["targets"], token_counts),
            ranks=config.probe_ranks,
        )
        self._tokens = {
            name: jax.make_array_from_callback(
                padded[name].shape, mesh_lib.batch_sharding(mesh), padded[name].__getitem__
            )
            for name in ("inputs", "targets", "weights")
        }

    def compile(self, params: Any) -> None:
        """Compiles the programs for abstract parameters, before the first probe."""
        self._programs.compile(params)

    def measure(self, params: Params) -> Probe:
        """Returns the probe of a model with these parameters."""
        reading = self._programs.read(params, self._tokens)
        core = spectrum.HeadCore(reading.head)
        moment = np.asarray(reading.second_moment, np.float64)
        plain = truncation.plain(core.raw)
        whitened = truncation.whitened(core.raw, moment)
        # All programs start before the host waits for the first.
        inverse = np.float32(gradient.inverse_map(plain))
        survival = self._programs.survive(params, reading.hidden, self._tokens, inverse)
        targets = self._tokens["targets"]
        found = [
            self._programs.sweep(params, reading.hidden, targets, *cut.maps())
            for cut in (plain, whitened)
        ]
        sweep, whitened_sweep = (self._summarise(*some) for some in found)
        by_layer, by_layer_centred = geometry.layer_anisotropy(np.asarray(reading.layers))
        eigenvalues = np.linalg.eigvalsh(moment)
        return Probe(
            **head_fields(core, plain, self._config.probe_ranks),
            anisotropy=by_layer,
            anisotropy_centred=by_layer_centred,
            anisotropy_without_bias=float(geometry.anisotropy_of(reading.without_bias)),
            iso_score=geometry.iso_score(geometry.covariance(moment, np.asarray(reading.mean))),
            hidden_top_share=float(eigenvalues[-1] / eigenvalues.sum()),
            mean_hidden_norm=float(reading.mean_norm),
            whitened_singular_values=truncation.whitened(core.centred, moment).singular_values,
            gradient_survival=float(survival),
            loss=sweep.full_loss,
            loss_se=sweep.full_loss_se,
            document_losses=sweep.document_losses,
            document_tokens=sweep.document_tokens,
            plain=sweep.gaps,
            whitened=whitened_sweep.gaps,
        )


def head_fields(
    core: spectrum.HeadCore, plain: truncation.Truncation, ranks: Sequence[int]
) -> dict[str, Any]:
    """Returns the fields of `Probe` that describe the head alone.

    The plain truncation is that of `core.raw`; its singular values are used again.
    """
    raw = core.resolved(plain.singular_values)
    values, centred = raw.values, core.spectrum(centred=True).values
    return {
        "singular_values": values,
        "singular_values_centred": centred,
        "first_bounded_index": raw.first_bounded_index,
        **{metric.__name__: metric(values) for metric in spectral_metrics.OF_HEADS},
        "singular_entropy_linear": spectral_metrics.linear_singular_entropy(values),
        "singular_entropy_centred": spectral_metrics.singular_entropy(centred),
        "ranks": np.asarray(ranks),
        "w_error": spectral_metrics.w_error(values)[np.asarray(ranks) - 1],
    }
