"""Extraction of a feature set from a model and a corpus, and the probes of one.

The model may be a run of ours or any causal language model: see `Source`. B: sequences; L: tokens;
D: hidden width; N: tokens of a part.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bottleneck.config import DataConfig
from bottleneck.data.batches import validation_windows
from bottleneck.data.tokens import prepare
from bottleneck.errors import UserError
from bottleneck.frozen.features import (
    PARTS,
    FeatureManifest,
    FeatureSet,
    FeatureWriter,
    Part,
    filling,
    load,
)
from bottleneck.frozen.figures import PROBE
from bottleneck.model import transformer
from bottleneck.model.head import HeadFactors
from bottleneck.probes import gap, geometry, spectrum, truncation
from bottleneck.probes.prober import head_fields
from bottleneck.runs.probe import Probe
from bottleneck.runs.reading import Run
from bottleneck.terminal import Progress

_PROBED_TOKENS = 2**16  # at most


class Source(Protocol):
    """A causal language model that returns its hidden states."""

    name: str
    n_layers: int
    d_model: int
    vocab_size: int
    max_length: int
    head: HeadFactors  # float32, without padded rows

    def read(
        self, inputs: np.ndarray, weights: np.ndarray, layer: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns hidden states [B, L, D] of a layer and sums [n_layers + 1, D + 3] of every layer.

        The sums are `geometry.layer_sums` over the tokens of weight 1.
        """

    def logits(self, inputs: np.ndarray) -> np.ndarray:
        """Returns logits, float32 [B, L, V]; for few sequences."""


class RunSource:
    """A checkpoint of a run folder, trained here or imported."""

    def __init__(self, run: Run, step: int | None = None):
        config = run.config.model
        step = step if step is not None else (run.steps[-1] if run.steps else None)
        self._params = run.params(step)
        self._graph = transformer.graph(config, run.config.compute)
        self.name = f"{run.name}, step {step}"
        self.n_layers, self.d_model = config.n_layers, config.d_model
        self.vocab_size, self.max_length = config.vocab_size, config.max_length
        factors = nnx.merge(self._graph, self._params).head.factors()
        self.head = HeadFactors(factors.rows[: factors.n_rows], factors.basis)
        self._read = jax.jit(self._read_on_device, static_argnames="layer")

    def read(
        self, inputs: np.ndarray, weights: np.ndarray, layer: int
    ) -> tuple[np.ndarray, np.ndarray]:
        return jax.device_get(self._read(self._params, inputs, weights, layer=layer))

    def logits(self, inputs: np.ndarray) -> np.ndarray:
        model = nnx.merge(self._graph, self._params)
        return np.asarray(model.head.factors().logits(model(inputs)[0]))[..., : self.vocab_size]

    def _read_on_device(
        self, params: Any, inputs: jax.Array, weights: jax.Array, *, layer: int
    ) -> tuple[jax.Array, jax.Array]:
        is_last = layer == self.n_layers

        def observe(hidden: jax.Array) -> tuple[jax.Array, jax.Array | None]:
            return geometry.layer_sums(hidden, weights), None if is_last else hidden

        last, (sums, seen) = nnx.merge(self._graph, params)(inputs, observe=observe)
        return last if is_last else seen[layer], sums


@dataclass(frozen=True)
class Request:
    """A choice of tokens of a corpus and of a layer of a model."""

    tokens: dict[Part, int]  # at most, of each part of the corpus
    sequence_length: int
    layer: int  # 0 is the embedding, n_layers is after the final norm
    dtype: str
    batch_size: int  # sequences in one call of the model


def make_features(source: Source, data: DataConfig, request: Request, path: Path) -> FeatureSet:
    """Makes the feature set of a request in a folder, or resumes it; shows progress.

    Raises: `UserError` if the request does not fit the model, or the folder is refused.
    """
    cache = prepare(data)
    if not 0 <= request.layer <= source.n_layers:
        raise UserError(
            f"--layer={request.layer} is not allowed; {source.name} has 0 to {source.n_layers}"
        )
    if request.sequence_length > source.max_length:
        raise UserError(
            f"--sequence_length={request.sequence_length} is more than the {source.max_length} "
            f"positions of {source.name}"
        )
    if cache.vocab_size > source.vocab_size:
        raise UserError(
            f"the tokenizer of {cache.path} has {cache.vocab_size:,} tokens and {source.name} only "
            f"{source.vocab_size:,}; take the model's own with --config.data.tokenizer"
        )
    windows = {
        part: validation_windows(cache, n, request.sequence_length, part)
        for part, n in request.tokens.items()
        if n > 0
    }
    mismatch = None
    if request.layer == source.n_layers:
        mismatch = _head_mismatch(source, next(iter(windows.values())))
    manifest = FeatureManifest(
        model=source.name,
        layer=request.layer,
        n_layers=source.n_layers,
        d_model=source.d_model,
        vocab_size=source.vocab_size,
        sequence_length=request.sequence_length,
        dtype=request.dtype,
        corpus=cache.digest,
        tokens={k: int(windows[k]["weights"].sum()) if k in windows else 0 for k in PARTS},
        head_mismatch=mismatch,
    )
    with filling(path, manifest, source.head) as writer:
        if writer is not None:
            for part, some in windows.items():
                _write_part(source, writer, part, some, request)
    return load(path)


def _head_mismatch(source: Source, windows: dict[str, np.ndarray]) -> float:
    """Returns the largest |logit − W h| over one sequence."""
    inputs, weights = windows["inputs"][:1], windows["weights"][:1]
    hidden, _ = source.read(inputs, weights, source.n_layers)
    product = source.head.project(jnp.float32(hidden)) @ source.head.rows.T
    return float(np.abs(source.logits(inputs) - np.asarray(product)).max())


def _write_part(
    source: Source,
    writer: FeatureWriter,
    part: Part,
    windows: dict[str, np.ndarray],
    request: Request,
) -> None:
    counts = windows["weights"] > 0
    writer.begin(part, windows["targets"][counts], windows["documents"][counts])
    size = request.batch_size
    batches = [slice(start, start + size) for start in range(0, len(counts), size)]
    sizes = np.array([counts[rows].sum() for rows in batches])
    n_done = writer.batches_done(part, sizes)
    with Progress(f"{part} features", int(sizes.sum())) as progress:
        for i, rows in enumerate(batches[n_done:], start=n_done):
            # Padding the last batch lets the model compile for one shape.
            missing = ((0, size - len(counts[rows])), (0, 0))
            inputs = np.pad(windows["inputs"][rows], missing)
            weights = np.pad(windows["weights"][rows], missing)
            hidden, layers = source.read(inputs, weights, request.layer)
            writer.append(part, hidden[weights > 0], layers)
            progress.show(int(sizes[: i + 1].sum()))


def anisotropy_by_layer(features: FeatureSet, part: Part) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean cosine similarity of two tokens at each depth, raw and centred.

    Both are float64 [n_layers + 1]. The centred one takes pairs within an extraction batch, less
    the batch's mean.
    """
    return geometry.layer_anisotropy(features.layer_sums(part).sum(axis=0))


def write_probe(features: FeatureSet) -> None:
    """Writes the probe of a feature set into its folder, unless it exists.

    It has the head's spectrum and the anisotropy of each layer. If the head reads these features,
    it also has the loss, and the gap at each rank that is a power of two.
    """
    path = features.path / PROBE
    if path.exists():
        return
    part: Part = "validation" if features.manifest.tokens["validation"] else "train"
    width = features.manifest.d_model
    ranks = sorted({*(2**i for i in range(width.bit_length()) if 2**i < width), width})
    raw, centred = anisotropy_by_layer(features, part)
    core = spectrum.read_core(features.head)
    found = head_fields(core, truncation.plain(core.raw), ranks)
    found |= {"anisotropy": raw, "anisotropy_centred": centred}
    if features.manifest.head_mismatch is not None:
        some = features.part(part)
        hidden_1xNxD = jnp.asarray(some.hidden[:_PROBED_TOKENS], jnp.float32)[None]
        targets = jnp.asarray(some.targets[:_PROBED_TOKENS])[None]
        documents = some.documents[:_PROBED_TOKENS][None]
        sweeps = {
            kind: gap.rank_sweep(
                *(features.head, hidden_1xNxD, targets, ranks, kind), documents_BxL=documents
            )
            for kind in ("plain", "whitened")
        }
        found |= {kind: sweep.gaps for kind, sweep in sweeps.items()}
        plain = sweeps["plain"]
        found |= {"loss": plain.full_loss, "loss_se": plain.full_loss_se}
        found |= {name: getattr(plain, name) for name in ("document_losses", "document_tokens")}
    Probe(**found).save(path)
