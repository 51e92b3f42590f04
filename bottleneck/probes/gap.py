"""The loss of a head at every rank in one pass: logits added up block of ranks by block of ranks.

B: sequences; L: tokens; D: hidden width; V: rows of the head; n: ranks of the sweep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from bottleneck.model.head import HeadFactors

_PADDING = -1e30


@dataclass(frozen=True)
class RankSweep:
    """Mean losses over tokens that count, nats; arrays are float64 [n], one entry a rank.

    ranks: int [n], ascending.
    loss: of the head cut to each rank.
    gap: loss less the whole head's, over the same tokens.
    gap_se: standard error of the gap, its tokens paired and clustered by document.
    full_loss, full_loss_se: of the whole head.
    """

    ranks: np.ndarray
    loss: np.ndarray
    gap: np.ndarray
    gap_se: np.ndarray
    full_loss: float
    full_loss_se: float


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
        for start, stop in zip(edges, edges[1:], strict=False):
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
    clusters = documents.reshape(-1)[counts]
    full = by_token[:, -1]
    gaps = by_token - full[:, None]
    return RankSweep(
        ranks=np.asarray(ranks),
        loss=by_token.mean(axis=0),
        gap=gaps.mean(axis=0),
        gap_se=clustered_standard_error(gaps, clusters),
        full_loss=float(full.mean()),
        full_loss_se=float(clustered_standard_error(full[:, None], clusters)[0]),
    )


def clustered_standard_error(values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Of the mean of each column of values [N, n], whose rows depend on one another in clusters.

    √(g/(g−1)·Σ_c (Σ_{i∈c} (x_i − x̄))²)/N over g clusters (Liang and Zeger 1986); NaN for one.
    """
    numbers = np.unique(clusters, return_inverse=True)[1]
    n_clusters = int(numbers.max()) + 1
    if n_clusters < 2:
        return np.full(values.shape[1], np.nan)
    sums = np.zeros((n_clusters, values.shape[1]))
    np.add.at(sums, numbers, values - values.mean(axis=0))
    scale = n_clusters / (n_clusters - 1)
    return np.sqrt(scale * np.sum(sums**2, axis=0)) / len(values)
