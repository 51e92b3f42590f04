"""The loss of a head at every rank in one pass: logits added up block of ranks by block of ranks.

B: sequences; L: tokens; D: hidden width; V: rows of the head; n: ranks of the sweep.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from bottleneck.model.head import HeadFactors
from bottleneck.probes.document_sums import DocumentSums

_PADDING = -1e30


@dataclass(frozen=True)
class RankSweep:
    """Mean losses over tokens that count, nats; arrays are float64 [n], one entry a rank.

    ranks: int [n], ascending.
    loss: of the head cut to each rank.
    gap: loss less the whole head's, over the same tokens.
    gap_se: standard error of the gap, its tokens paired and clustered by document.
    full_loss, full_loss_se: of the whole head.
    full_document_losses, document_tokens: [g], sums of the whole head's losses and counts of tokens
        in each of g documents, so that runs can be compared pair by pair.
    """

    ranks: np.ndarray
    loss: np.ndarray
    gap: np.ndarray
    gap_se: np.ndarray
    full_loss: float
    full_loss_se: float
    full_document_losses: np.ndarray
    document_tokens: np.ndarray


def losses_by_rank(
    factors: HeadFactors,
    hidden_BxLxD: jax.Array,
    targets_BxL: jax.Array,
    encode_DxD: jax.Array,
    decode_DxD: jax.Array,
    *,
    ranks: Sequence[int],
    vocab_size: int,
    chunk: int,
) -> jax.Array:
    """float32 [B, L, n] cross-entropy of every token at every rank, nats.

    Args:
        factors: the head.
        encode_DxD, decode_DxD: of a `truncation.Truncation`.
        ranks: ascending; each costs a log-sum-exp, all together one product with the head.
        vocab_size: rows from here on are padding.
        chunk: about how many tokens' logits exist at one time.
    """
    exact = jax.lax.Precision.HIGHEST
    inner = decode_DxD
    if factors.basis is not None:
        inner = jnp.matmul(factors.basis, decode_DxD, precision=exact)
    columns_VxD = jnp.matmul(factors.rows, inner, precision=exact)
    is_padding = jnp.arange(columns_VxD.shape[0]) >= vocab_size
    batch, length = targets_BxL.shape
    chunk_length = min(length, max(1, chunk // batch))
    padding = -length % chunk_length
    edges = [0, *ranks]

    def one_chunk(_: None, arrays: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        hidden, targets = arrays
        codes = jnp.matmul(hidden.astype(jnp.float32), encode_DxD, precision=exact)
        logits = jnp.where(is_padding, _PADDING, 0.0)
        losses = []
        for start, stop in itertools.pairwise(edges):
            logits = logits + jnp.einsum(
                "bld,vd->blv", codes[..., start:stop], columns_VxD[:, start:stop], precision=exact
            )
            target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
            losses.append(jax.nn.logsumexp(logits, axis=-1) - target_logits)
        return None, jnp.stack(losses, axis=-1)

    def split(array: jax.Array) -> jax.Array:
        padded = jnp.pad(array, [(0, 0), (0, padding)] + [(0, 0)] * (array.ndim - 2))
        return jnp.moveaxis(padded.reshape(batch, -1, chunk_length, *array.shape[2:]), 1, 0)

    _, losses = jax.lax.scan(one_chunk, None, (split(hidden_BxLxD), split(targets_BxL)))
    return jnp.moveaxis(losses, 0, 1).reshape(batch, -1, len(ranks))[:, :length]


def summarise(
    losses: np.ndarray, weights: np.ndarray, documents: np.ndarray, ranks: Sequence[int]
) -> RankSweep:
    """Means and clustered standard errors, float64, from `losses_by_rank` whose last rank is D."""
    counts = weights.reshape(-1) > 0
    by_token = losses.reshape(-1, losses.shape[-1]).astype(np.float64)[counts]
    full = by_token[:, -1:]
    sums = DocumentSums.of(np.hstack([by_token - full, full]), documents.reshape(-1)[counts])
    means, errors = sums.means(), sums.standard_errors()
    return RankSweep(
        ranks=np.asarray(ranks),
        loss=by_token.mean(axis=0),
        gap=means[:-1],
        gap_se=errors[:-1],
        full_loss=float(means[-1]),
        full_loss_se=float(errors[-1]),
        full_document_losses=sums.totals[:, -1],
        document_tokens=sums.n_tokens,
    )
