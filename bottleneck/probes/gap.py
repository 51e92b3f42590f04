"""The cost of truncating a head to each rank: mean losses, gaps, and the parts of a gap.

B: sequences; L: tokens; D: hidden width; n: ranks; g: documents. `token_sweep` computes the losses
of single tokens; this module averages them in float64 on the host.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from bottleneck.model.head import HeadFactors
from bottleneck.probes import geometry, spectrum
from bottleneck.probes import truncation as truncations
from bottleneck.probes.document_sums import DocumentSums
from bottleneck.probes.token_sweep import Predictions, token_sweep
from bottleneck.runs.probe import RankGaps

FREQUENCY_CLASSES = ("rare", "middle", "frequent")
Kind = Literal["plain", "centred", "whitened"]  # of a truncation

_second_moment = jax.jit(geometry.second_moment)
_token_sweep = jax.jit(token_sweep, static_argnames="ranks")


@dataclass(frozen=True)
class RankSweep:
    """Mean losses over tokens of weight 1, nats per token; arrays are float64.

    ranks: int [n], ascending; the last is D.
    loss: [n], with the head truncated to each rank.
    gaps: [n] each, the loss minus the whole head's, and its parts.
    full_loss, full_loss_se: loss of the whole head; standard error clustered by document.
    document_losses, document_tokens: [g], the whole head's summed losses and the number of tokens.
    """

    ranks: np.ndarray
    loss: np.ndarray
    gaps: RankGaps
    full_loss: float
    full_loss_se: float
    document_losses: np.ndarray
    document_tokens: np.ndarray


def rank_sweep(
    factors: HeadFactors,
    hidden_BxLxD: jax.Array,
    targets_BxL: jax.Array,
    ranks: Sequence[int],
    truncation: Kind = "plain",
    *,
    weights_BxL: np.ndarray | None = None,
    documents_BxL: np.ndarray | None = None,
) -> RankSweep:
    """Returns the mean losses of a head truncated to each rank, on any device or mesh.

    It compiles once per shape and ranks, so a series of checkpoints costs one compilation.

    Args:
        hidden_BxLxD: hidden states that the head reads, after the final norm.
        targets_BxL: the next token of each.
        ranks: 1 to D; D is added if it is missing.
        truncation: of W ("plain"), of W − 1·w̄ᵀ ("centred"), or of W·C^½ ("whitened").
        weights_BxL: 1 for a token that counts, otherwise 0; None counts all.
        documents_BxL: document number of each token; None makes each sequence a document.
    Raises:
        ValueError: a rank is not between 1 and D, or the truncation is unknown.
    """
    width = hidden_BxLxD.shape[-1]
    if truncation not in typing.get_args(Kind):
        raise ValueError(f"truncation={truncation!r} is none of {', '.join(typing.get_args(Kind))}")
    if not all(1 <= rank <= width for rank in ranks):
        raise ValueError(f"ranks must be between 1 and {width}, and are {tuple(ranks)}")
    ranks = tuple(sorted({*ranks, width}))
    weights = np.ones(targets_BxL.shape) if weights_BxL is None else np.asarray(weights_BxL)
    if documents_BxL is None:
        documents_BxL = np.broadcast_to(np.arange(len(weights))[:, None], weights.shape)
    core = spectrum.read_core(factors)
    if truncation == "whitened":
        moment = _second_moment(hidden_BxLxD, jnp.asarray(weights, jnp.float32))
        cut = truncations.whitened(core.raw, np.asarray(moment))
    else:
        cut = truncations.plain(core.raw if truncation == "plain" else core.centred)
    losses, predictions = _token_sweep(factors, hidden_BxLxD, targets_BxL, *cut.maps(), ranks=ranks)
    targets = np.asarray(targets_BxL)
    counts = np.bincount(targets[weights > 0], minlength=factors.n_rows)
    return summarise(
        losses,
        predictions,
        weights=weights,
        documents=documents_BxL,
        classes=frequency_classes(targets, counts),
        ranks=ranks,
    )


def summarise(
    losses: jax.Array,
    predictions: Predictions,
    *,
    weights: np.ndarray,
    documents: np.ndarray,
    classes: np.ndarray,
    ranks: Sequence[int],
) -> RankSweep:
    """Returns means and errors of the losses [B, L, n] of `token_sweep`, whose last rank is D.

    Weights, documents and `frequency_classes` are [B, L].
    """
    counts = weights.reshape(-1) > 0

    def by_token(array: jax.Array) -> np.ndarray:
        return np.asarray(array).reshape(-1, array.shape[-1])[counts].astype(np.float64)

    loss = by_token(losses)
    full = loss[:, -1:]
    gaps = loss - full
    sums = DocumentSums.of(np.hstack([gaps, full]), documents.reshape(-1)[counts])
    means, errors = sums.means(), sums.standard_errors()
    token_classes = classes.reshape(-1)[counts]
    by_class = {
        name: gaps[token_classes == i].sum(axis=0) / len(loss)
        for i, name in enumerate(FREQUENCY_CLASSES)
    }
    parts = {name: by_token(array).mean(axis=0) for name, array in predictions._asdict().items()}
    return RankSweep(
        ranks=np.asarray(ranks),
        loss=loss.mean(axis=0),
        gaps=RankGaps(gap=means[:-1], gap_se=errors[:-1], **parts, **by_class),
        full_loss=float(means[-1]),
        full_loss_se=float(errors[-1]),
        document_losses=sums.totals[:, -1],
        document_tokens=sums.n_tokens,
    )


def frequency_classes(tokens: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns the index in `FREQUENCY_CLASSES` of each token, in the shape of `tokens`.

    Each class has about a third of all occurrences; the rarest tokens come first.

    Args:
        counts: [vocab_size] occurrences in a text, best the training text.
    """
    order = np.argsort(counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    classes = np.empty(len(counts), np.int64)
    classes[order] = np.minimum(3 * before // max(counts.sum(), 1), 2)
    return classes[tokens]
