"""The loss of every token at every rank of a head, in one pass, and the terms that predict the gap.

Logits accumulate by blocks of ranks, so n ranks cost one product with the head and n log-sum-exps.
Only a tile of rows and tokens exists at a time, and it fits into a core's cache. Every device takes
its own rows and tokens. If columns are split, it gathers one block of rows at a time.

B: sequences; L: tokens; D: hidden width; V: rows of the head; K: columns of its rows, D or R.

n: ranks; t: tokens of a tile; z, p: logits and probabilities of the whole head; z_r, p_r: those at
rank r; Δ = z_r − z; y: the target.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from bottleneck.model.head import HeadFactors
from bottleneck.parallel.mesh import partition_spec
from bottleneck.probes.vocabulary import EXACT, Axes, RowBlocks, mesh_axes, on_mesh

_TILE_ROWS, _TILE_TOKENS = 512, 256  # half a MiB: fits a core's cache and keeps several cores busy

_TINY = 1e-30  # replaces a zero sum of weights
_PADDING = -1e30  # logit of a padded row: its probability is exactly 0

_matmul = functools.partial(jnp.matmul, precision=EXACT)


class Predictions(NamedTuple):
    """The terms of `runs.RankGaps` that explain the gap, of every token: float32 [B, L, n]."""

    first_order: jax.Array
    second_order: jax.Array
    kl: jax.Array
    agreement: jax.Array


def token_sweep(
    factors: HeadFactors,
    hidden_BxLxD: jax.Array,
    targets_BxL: jax.Array,
    encode_DxD: jax.Array,
    decode_DxD: jax.Array,
    *,
    ranks: Sequence[int],
) -> tuple[jax.Array, Predictions]:
    """Returns the cross-entropy of every token at every rank, float32 [B, L, n] nats, and terms.

    Args:
        encode_DxD, decode_DxD: float32 maps of a `truncation.Truncation`.
        ranks: ascending; the last is D, the whole head.
    """
    # A factored head has few columns, so every device holds them all.
    columns = "embed" if factors.is_full else "rank"
    batch = partition_spec(["batch"])
    sweep = on_mesh(
        functools.partial(
            _sweep_shard,
            # A head of rank R has R columns; greater ranks add nothing to its logits.
            edges=tuple(min(rank, factors.rank) for rank in ranks),
            n_rows=factors.n_rows,
            vocab_axes=mesh_axes("vocab"),
            column_axes=mesh_axes(columns),
        ),
        in_specs=(partition_spec(["vocab", columns]), PartitionSpec(), batch, batch),
        out_specs=batch,
    )
    inner = decode_DxD if factors.basis is None else _matmul(factors.basis, decode_DxD)
    codes_BxLxD = _matmul(hidden_BxLxD.astype(jnp.float32), encode_DxD)
    losses, predictions = sweep(factors.rows, inner, codes_BxLxD, targets_BxL)
    return losses, predictions


class _Running(NamedTuple):
    """Sums over the rows so far for a tile: float32 [n, t], relative to exp(top).

    Moments of Δ are merged as in Chan et al. 1979.
    """

    top: jax.Array  # max z_r
    total: jax.Array  # Σ exp(z_r)
    target: jax.Array  # z_r[y]
    mean: jax.Array  # Σ exp(z)·Δ / Σ exp(z)
    squares: jax.Array  # Σ exp(z)·(Δ − mean)², relative to exp(top) of the whole head
    favourite: jax.Array  # z_r of the whole head's most likely token


def _sweep_shard(
    rows_VxK: jax.Array,
    inner_KxD: jax.Array,
    codes_BxLxD: jax.Array,
    targets_BxL: jax.Array,
    *,
    edges: tuple[int, ...],
    n_rows: int,
    vocab_axes: Axes,
    column_axes: Axes,
) -> tuple[jax.Array, Predictions]:
    """Returns the sweep of one device's tokens; other devices hold other rows or columns."""
    n_tokens, width = targets_BxL.size, edges[-1]
    tile = min(n_tokens, _TILE_TOKENS)

    def tiles(array: jax.Array) -> jax.Array:
        flat = array.reshape(n_tokens, *array.shape[2:])
        padded = jnp.pad(flat, [(0, -n_tokens % tile)] + [(0, 0)] * (flat.ndim - 1))
        return padded.reshape(-1, tile, *flat.shape[1:])

    def tokens(tiled: jax.Array) -> jax.Array:
        flat = jnp.moveaxis(tiled, 1, 2).reshape(-1, len(edges))[:n_tokens]
        return flat.reshape(*targets_BxL.shape, len(edges))

    blocks = RowBlocks(rows_VxK, n_rows, vocab_axes, _TILE_ROWS)
    # The mean row changes no probability, but sums of Δ and Δ² would lose digits to it.
    total_K = jnp.sum(jnp.where(blocks.counts[:, None], rows_VxK, 0), axis=0, dtype=jnp.float32)
    mean_K = jax.lax.psum(total_K, vocab_axes) / n_rows
    codes, targets = tiles(codes_BxLxD[..., :width]), tiles(targets_BxL) - blocks.first_row

    def one_block(states: _Running, index: jax.Array) -> tuple[_Running, None]:
        block, counts = blocks(index)
        block -= mean_K
        if column_axes:
            block = jax.lax.all_gather(block, column_axes, axis=1, tiled=True)
        columns = _matmul(block, inner_KxD[:, :width])

        def one_tile(_: None, arrays: tuple[_Running, Any, Any]) -> tuple[None, _Running]:
            state, code, target = arrays
            logits = _nested_logits(columns, counts, code, edges)
            return None, _add(state, logits, target - blocks.start(index), counts[:, 0])

        return jax.lax.scan(one_tile, None, (states, codes, targets))[1], None

    zeros = jnp.zeros((len(codes), len(edges), tile))
    start = _Running(zeros + _PADDING, *(zeros,) * 5)
    states, _ = jax.lax.scan(one_block, start, jnp.arange(blocks.number))
    return jax.tree.map(tokens, _finish(states, vocab_axes))


def _nested_logits(
    columns_rxD: jax.Array, counts_rx1: jax.Array, codes_txD: jax.Array, edges: tuple[int, ...]
) -> list[jax.Array]:
    """Returns z_r for every rank: [r, t] each, of r rows."""
    logits: jax.Array = jnp.where(counts_rx1, 0.0, _PADDING)
    found, start = [], 0
    for stop in edges:
        if stop > start:
            logits += _matmul(columns_rxD[:, start:stop], codes_txD[:, start:stop].T)
            # Without a barrier every use of z_r would sum its blocks again.
            logits = jax.lax.optimization_barrier(logits)
        found.append(logits)
        start = stop
    return found


def _add(
    running: _Running, logits: list[jax.Array], target_t: jax.Array, counts_r: jax.Array
) -> _Running:
    """Returns the sums with one more block of rows; targets count from its first row."""
    whole = logits[-1]
    row_t = jnp.clip(target_t, 0, len(counts_r) - 1)
    is_here = (row_t == target_t) & counts_r[row_t]
    top = jnp.maximum(running.top, jnp.stack([jnp.max(z, axis=0) for z in logits]))
    scale = jnp.exp(running.top - top)
    total = jnp.stack([jnp.sum(jnp.exp(z - top[i]), axis=0) for i, z in enumerate(logits)])
    target = jnp.stack([jnp.where(is_here, _pick(z, row_t), 0.0) for z in logits])
    weight = jax.lax.optimization_barrier(jnp.exp(whole - top[-1]))
    before, here = running.total[-1] * scale[-1], total[-1]
    after = before + here
    changes = [z - whole for z in logits]
    mean = jnp.stack([jnp.sum(weight * d, axis=0) for d in changes]) / jnp.maximum(here, _TINY)
    squares = [jnp.sum(weight * (d - mean[i]) ** 2, axis=0) for i, d in enumerate(changes)]
    step = mean - running.mean
    # The first row of the highest logit: argmax is ten times slower on CPUs.
    rows = jax.lax.broadcasted_iota(jnp.int32, whole.shape, 0)
    row_t = jnp.min(jnp.where(whole == jnp.max(whole, axis=0), rows, len(whole) - 1), axis=0)
    favourite = jnp.stack([_pick(z, row_t) for z in logits])
    return _Running(
        top,
        running.total * scale + total,
        running.target + target,
        running.mean + step * here / after,
        running.squares * scale[-1] + jnp.stack(squares) + step**2 * before * here / after,
        jnp.where(top[-1] > running.top[-1], favourite, running.favourite),
    )


def _finish(running: _Running, axes: Axes) -> tuple[jax.Array, Predictions]:
    """Returns losses and predictions [tiles, n, t] over the rows of all devices on these axes."""
    top = jax.lax.pmax(running.top, axes)
    scale = jnp.exp(running.top - top)
    lse = top + jnp.log(jax.lax.psum(running.total * scale, axes))
    target = jax.lax.psum(running.target, axes)
    weight = (running.total * scale)[:, -1:]
    total = jax.lax.psum(weight, axes)
    mean = jax.lax.psum(weight * running.mean, axes) / total
    squares = running.squares * scale[:, -1:] + weight * (running.mean - mean) ** 2
    has_favourite = running.top[:, -1:] == top[:, -1:]
    favourite = jax.lax.pmax(jnp.where(has_favourite, running.favourite, -jnp.inf), axes)
    return lse - target, Predictions(
        first_order=mean - (target - target[:, -1:]),
        second_order=jax.lax.psum(squares, axes) / total / 2,
        kl=lse - lse[:, -1:] - mean,
        agreement=(favourite == top).astype(jnp.float32),
    )


def _pick(array_rxt: jax.Array, row_t: jax.Array) -> jax.Array:
    """Returns one row's entry for each token: [t]."""
    return jnp.take_along_axis(array_rxt, row_t[None], axis=0)[0]
