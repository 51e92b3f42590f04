"""From a model and a corpus to a feature set, and what the probes say of one.

The model may be a run of ours or any causal language model: see `Source`. B: sequences; L: tokens;
D: hidden width; N: tokens of a part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bottleneck.config import DataConfig
from bottleneck.data.batches import held_out
from bottleneck.data.tokens import TokenCache, prepare
from bottleneck.errors import UserError
from bottleneck.frozen.features import (
    PARTS,
    FeatureSet,
    FeatureWriter,
    Manifest,
    Part,
    filling,
    load_features,
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
    """A causal language model whose hidden states can be had."""

    name: str
    n_layers: int
    d_model: int
    vocab_size: int
    max_length: int
    head: HeadFactors  # float32, without padded rows

    def read(
        self, inputs: np.ndarray, weights: np.ndarray, layer: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The hidden states [B, L, D] of a layer, and sums [n_layers + 1, D + 3] of every layer.

        The sums are over tokens with weight 1, as `geometry.layer_sums` has them.
        """

    def logits(self, inputs: np.ndarray) -> np.ndarray:
        """float32 [B, L, V], for few sequences."""


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
        hidden, layers = self._read(self._params, inputs, weights, layer=layer)
        return np.asarray(hidden), np.asarray(layers)

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
    """What to take of a model and a corpus."""

    tokens: dict[Part, int]  # at most so many of each part of the corpus
    sequence_length: int
    layer: int  # 0 is the embedding, n_layers is after the final norm
    dtype: str
    batch_size: int  # sequences that go through the model together


def plan(
    source: Source, cache: TokenCache, request: Request
) -> tuple[Manifest, dict[Part, dict[str, np.ndarray]]]:
    """What the feature set will be, and the windows of each part; `UserError` where it can't be."""
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
        part: held_out(cache, n, request.sequence_length, part)
        for part, n in request.tokens.items()
        if n > 0
    }
    mismatch = None
    if request.layer == source.n_layers:
        mismatch = _head_mismatch(source, next(iter(windows.values())))
    return Manifest(
        model=source.name,
        layer=request.layer,
        n_layers=source.n_layers,
        d_model=source.d_model,
        vocab_size=source.vocab_size,
        sequence_length=request.sequence_length,
        dtype=request.dtype,
        corpus=cache.digest,
        tokens={
            part: int(windows[part]["weights"].sum()) if part in windows else 0 for part in PARTS
        },
        head_mismatch=mismatch,
    ), windows


def _head_mismatch(source: Source, windows: dict[str, np.ndarray]) -> float:
    """The largest |logit − W h| over one sequence."""
    inputs, weights = windows["inputs"][:1], windows["weights"][:1]
    hidden, _ = source.read(inputs, weights, source.n_layers)
    product = source.head.project(jnp.float32(hidden)) @ source.head.rows.T
    return float(np.abs(source.logits(inputs) - np.asarray(product)).max())


def make_features(source: Source, data: DataConfig, request: Request, path: Path) -> FeatureSet:
    """Makes the feature set of a request in a folder, or resumes it; shows its progress."""
    cache = prepare(data)
    manifest, windows = plan(source, cache, request)
    with filling(path, manifest, source.head) as writer:
        if writer is not None:
            for part, some in windows.items():
                _write_part(source, writer, part, some, request)
    return load_features(path)


def _write_part(
    source: Source,
    writer: FeatureWriter,
    part: Part,
    windows: dict[str, np.ndarray],
    request: Request,
) -> None:
    counts = windows["weights"] > 0
    writer.begin(part, windows["targets"][counts], windows["documents"][counts])
    batches = list(_batches(len(counts), request.batch_size))
    sizes = np.array([counts[rows].sum() for rows in batches])
    n_done = writer.batches_done(part, sizes)
    with Progress(f"{part} features", int(sizes.sum())) as progress:
        for i, rows in enumerate(batches[n_done:], start=n_done):
            # The last batch is filled up, so that the model is compiled for one shape.
            missing = ((0, request.batch_size - len(counts[rows])), (0, 0))
            inputs = np.pad(windows["inputs"][rows], missing)
            weights = np.pad(windows["weights"][rows], missing)
            hidden, layers = source.read(inputs, weights, request.layer)
            writer.append(part, hidden[weights > 0], layers)
            progress.show(int(sizes[: i + 1].sum()))


def _batches(n: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, n, size))


def anisotropy_by_layer(features: FeatureSet, part: Part) -> tuple[np.ndarray, np.ndarray]:
    """float64 [n_layers + 1] mean cosine similarity of two tokens at each depth, and centred.

    The second is of pairs within a batch of the extraction, less that batch's mean.
    """
    sums = features.layer_sums(part).sum(axis=0)
    units = geometry.UnitSum(sums[:, :-3], sums[:, -3])
    return np.asarray(geometry.anisotropy_of(units), np.float64), sums[:, -2] / sums[:, -1]


def write_probe(features: FeatureSet) -> None:
    """Writes the probe of a feature set into its folder, unless that exists.

    It has the head's spectrum, anisotropy by layer and, if the head reads these features, the loss
    and the gap at powers of two of rank.
    """
    path = features.path / PROBE
    if path.exists():
        return
    part: Part = "heldout" if features.manifest.tokens["heldout"] else "train"
    width = features.manifest.d_model
    ranks = sorted({*(2**i for i in range(width.bit_length()) if 2**i < width), width})
    raw, centred = anisotropy_by_layer(features, part)
    core = spectrum.read_core(features.head)
    found = head_fields(core, truncation.plain(core.raw), ranks)
    found |= {"anisotropy": raw, "anisotropy_centred": centred}
    if features.manifest.head_mismatch is not None:
        some, taken = features.part(part), slice(0, _PROBED_TOKENS)
        sweeps = {
            kind: gap.rank_sweep(
                features.head,
                sequence_of(some.hidden, taken),
                jnp.asarray(some.targets[taken])[None],
                ranks,
                kind,
                documents_BxL=some.documents[taken][None],
            )
            for kind in ("plain", "whitened")
        }
        plain = sweeps["plain"]
        found |= {kind: sweep.gaps for kind, sweep in sweeps.items()}
        found |= {"loss": plain.full_loss, "loss_se": plain.full_loss_se}
        found |= {"document_losses": plain.document_losses}
        found |= {"document_tokens": plain.document_tokens}
    Probe(**found).save(path)


def sequence_of(hidden: np.ndarray, rows: Sequence[int] | slice = slice(None)) -> jax.Array:
    """float32 [1, N, D] on the device, as probes take hidden states."""
    return jnp.asarray(hidden[rows], jnp.float32)[None]
