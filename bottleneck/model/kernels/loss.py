"""The cross-entropy of one device's tokens with its share of the head, a chunk at a time.

b: sequences of this device; L: tokens; V: rows of this device; K: columns of the head's rows.
There are two ways through, by where the head lies:

- Its rows are whole here, or are made so at first. Tokens are taken a chunk at a time, and the
  gradient is made while a chunk's logits are at hand: three products with the head a token, not the
  four that computing the logits again would take.
- Its columns are split over `fsdp`, and are too many to be whole. Rows are taken a block at a time,
  gathered when needed; the log-sum-exp runs along, and a second pass makes the gradient, each
  block's reduced and scattered at once. Four products, and 2/n_blocks of the memory.

On a TPU exponentials are taken against a reference that is known before the logits are, the highest
of a few of them. So they are summed up while a product makes the logits, which the first pass over
blocks of rows then never has in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bottleneck.model.kernels import loss_cpu
from bottleneck.parallel.mesh import platform

# Added to the logits of padded rows: their probability is 0 to the last bit, and no NaN can arise.
_PADDING = -1e30

# Rows of a gathered block are a multiple of this, the width of a TPU's matrix unit and lanes.
_ROW_UNIT = 256

# Sums of exponentials up to here, of logits some 35 above the reference, are taken as they are.
# What is done beyond has the other name in the names of its operations.
_REACH = 1e16
RARELY = "rarely"


@dataclass(frozen=True)
class Chunking:
    vocab_size: int  # rows from here on are padding
    chunk: int  # tokens whose logits for all rows of the device exist at one time


@dataclass(frozen=True)
class Layout:
    """Mesh axes over which this device's share is one of several; none without a mesh."""

    batch: tuple[str, ...] = ()  # of the tokens
    vocab: tuple[str, ...] = ()  # of the head's rows
    columns: tuple[str, ...] = ()  # of the head's columns
    is_never_whole: bool = False  # the head's rows, where its columns are split

    @property
    def goes_by_rows(self) -> bool:
        return self.is_never_whole and bool(self.columns)

    def first_row(self, n_rows: int) -> jax.Array | int:
        """Of this device's rows, in the whole vocabulary."""
        return jax.lax.axis_index(self.vocab) * n_rows if self.vocab else 0


class _Logits(NamedTuple):
    values: jax.Array  # float32 [b, c, rows]
    is_target: jax.Array  # bool [b, c, rows]


class _Sums(NamedTuple):
    """Of the logits so far, float32 [b, c]."""

    reference: jax.Array
    total: jax.Array  # Σ exp(z − reference)
    target_logits: jax.Array  # 0 where the target is not among them


def statistics(
    layout: Layout, chunking: Chunking, projected: jax.Array, rows: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """float32 [b, L]: log-sum-exp of every token's logits, and the logit of its target."""
    if layout.goes_by_rows:
        return _statistics_by_rows(layout, chunking, projected, rows, targets)
    if _is_one_cpu(layout, projected):
        found = loss_cpu.statistics(
            projected.reshape(-1, rows.shape[1]),
            rows.astype(jnp.float32),
            targets.reshape(-1),
            vocab_size=chunking.vocab_size,
            chunk=min(chunking.chunk, targets.size),
        )
        return found[0].reshape(targets.shape), found[1].reshape(targets.shape)
    rows = _gather_columns(layout, rows, projected.dtype)
    length = projected.shape[1]
    chunk_length = _chunk_length(projected.shape, chunking)

    def one_chunk(_: None, arrays: tuple[jax.Array, ...]) -> tuple[None, tuple[jax.Array, ...]]:
        return None, _reduce(_chunk(layout, chunking, rows, *arrays)[1], layout)

    arrays = tuple(_split(array, chunk_length) for array in (projected, targets))
    _, (lse, target_logits) = jax.lax.scan(one_chunk, None, arrays)
    return _join(lse)[:, :length], _join(target_logits)[:, :length]


def sums(
    layout: Layout, lse: jax.Array, target_logits: jax.Array, weights: jax.Array, z_loss: float
) -> tuple[jax.Array, jax.Array]:
    """Over all tokens of all devices: Σ w·(CE + z_loss·lse²) and Σ w·CE."""
    loss = lse - target_logits
    objective = jnp.sum(weights * (loss + z_loss * lse**2))
    return jax.lax.psum((objective, jnp.sum(weights * loss)), layout.batch)


def sums_and_gradients(
    layout: Layout,
    chunking: Chunking,
    z_loss: float,
    projected: jax.Array,
    rows: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """`sums`, and the objective's gradients by this device's `projected` and `rows`."""
    if layout.goes_by_rows:
        return _gradients_by_rows(layout, chunking, z_loss, projected, rows, targets, weights)
    if _is_one_cpu(layout, projected):
        (lse, target_logits), (h_gradient, rows_gradient) = loss_cpu.losses_and_gradients(
            projected.reshape(-1, rows.shape[1]),
            rows,
            targets.reshape(-1),
            weights.reshape(-1),
            vocab_size=chunking.vocab_size,
            chunk=min(chunking.chunk, targets.size),
            z_loss=z_loss,
        )
        lse, target_logits = lse.reshape(targets.shape), target_logits.reshape(targets.shape)
        return (
            sums(layout, lse, target_logits, weights, z_loss),
            (h_gradient.reshape(projected.shape), rows_gradient),
        )
    rows_dtype, rows = rows.dtype, _gather_columns(layout, rows, projected.dtype)
    length = projected.shape[1]
    chunk_length = _chunk_length(projected.shape, chunking)

    def one_chunk(
        rows_gradient: jax.Array, arrays: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        h, t, w = arrays
        logits, sums = _chunk(layout, chunking, rows, h, t)
        lse, target_logits = _reduce(sums, layout)
        gradient = _logits_gradient(logits, lse, w, z_loss).astype(h.dtype)
        h_gradient = jnp.einsum("blv,vk->blk", gradient, rows)
        rows_gradient += jnp.einsum("blv,blk->vk", gradient, h, preferred_element_type=jnp.float32)
        return rows_gradient, (h_gradient, lse, target_logits)

    arrays = tuple(_split(array, chunk_length) for array in (projected, targets, weights))
    start = jnp.zeros(rows.shape, jnp.float32)
    rows_gradient, results = jax.lax.scan(one_chunk, start, arrays)
    h_gradient, lse, target_logits = (_join(result)[:, :length] for result in results)
    return (
        sums(layout, lse, target_logits, weights, z_loss),
        (
            jax.lax.psum(h_gradient, layout.vocab),
            _sum_others(layout, _scatter_columns(layout, rows_gradient)).astype(rows_dtype),
        ),
    )


def _is_one_cpu(layout: Layout, projected: jax.Array) -> bool:
    """Whether `loss_exponentials` can be taken."""
    return layout == Layout() and projected.dtype == jnp.float32 and platform() == "cpu"


def _chunk(
    layout: Layout, chunking: Chunking, rows: jax.Array, projected: jax.Array, targets: jax.Array
) -> tuple[_Logits, _Sums]:
    """The logits of a chunk of tokens for all rows of this device, and their sums."""
    place = (targets, layout.first_row(rows.shape[0]), chunking.vocab_size)
    logits = _logits(projected, rows, *place)
    start = _start(lambda: _logits(projected, rows[:_ROW_UNIT], *place), targets)
    return logits, _add(start, lambda _: logits, projected)


def _statistics_by_rows(
    layout: Layout, chunking: Chunking, projected: jax.Array, rows: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    first_row = layout.first_row(rows.shape[0])
    blocks, starts = _row_blocks(layout, chunking, projected, rows)

    def one_block(sums: _Sums, block: tuple[jax.Array, jax.Array]) -> tuple[_Sums, None]:
        shard, start = block
        gathered = _gather_columns(layout, shard, projected.dtype)
        place = (targets, first_row + start, chunking.vocab_size, rows.shape[0] - start)
        return _add(sums, lambda h: _logits(h, gathered, *place), projected), None

    def few() -> _Logits:
        few_rows = _gather_columns(layout, rows[:_ROW_UNIT], projected.dtype)
        return _logits(projected, few_rows, targets, first_row, chunking.vocab_size)

    sums, _ = jax.lax.scan(one_block, _start(few, targets), (blocks, starts))
    return _reduce(sums, layout)


def _gradients_by_rows(
    layout: Layout,
    chunking: Chunking,
    z_loss: float,
    projected: jax.Array,
    rows: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    lse, target_logits = _statistics_by_rows(layout, chunking, projected, rows, targets)
    first_row = layout.first_row(rows.shape[0])
    blocks, starts = _row_blocks(layout, chunking, projected, rows)

    def one_block(
        h_gradient: jax.Array, block: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        shard, start = block
        gathered = _gather_columns(layout, shard, projected.dtype)
        logits = _logits(
            projected,
            gathered,
            targets,
            first_row + start,
            chunking.vocab_size,
            rows.shape[0] - start,
        )
        gradient = _logits_gradient(logits, lse, weights, z_loss).astype(projected.dtype)
        h_gradient += jnp.einsum(
            "blv,vk->blk", gradient, gathered, preferred_element_type=jnp.float32
        )
        block_gradient = jnp.einsum(
            "blv,blk->vk", gradient, projected, preferred_element_type=jnp.float32
        )
        return h_gradient, _scatter_columns(layout, block_gradient)

    start = jnp.zeros(projected.shape, jnp.float32)
    h_gradient, block_gradients = jax.lax.scan(one_block, start, (blocks, starts))
    rows_gradient = block_gradients.reshape(-1, rows.shape[1])[: rows.shape[0]]
    return (
        sums(layout, lse, target_logits, weights, z_loss),
        (
            jax.lax.psum(h_gradient, layout.vocab).astype(projected.dtype),
            _sum_others(layout, rows_gradient).astype(rows.dtype),
        ),
    )


def _logits(
    projected: jax.Array,
    rows: jax.Array,
    targets: jax.Array,
    first_row: jax.Array | int,
    vocab_size: int,
    n_rows: jax.Array | int | None = None,
) -> _Logits:
    """Of these tokens and rows; those from `n_rows` on, and past the vocabulary, are masked."""
    values = jnp.einsum("blk,vk->blv", projected, rows, preferred_element_type=jnp.float32)
    index = jax.lax.broadcasted_iota(jnp.int32, (1, 1, rows.shape[0]), 2)
    is_row = first_row + index < vocab_size
    if n_rows is not None:
        is_row &= index < n_rows
    is_target = (first_row + index == targets[..., None]) & is_row
    return _Logits(jnp.where(is_row, values, _PADDING), is_target)


def _start(few: Callable[[], _Logits], targets: jax.Array) -> _Sums:
    """Sums of no logits. A TPU's reference is the highest of a few that are among those to come.

    So that their sum cannot vanish.
    """
    zeros = jnp.zeros(targets.shape)
    reference = jnp.max(few().values, axis=-1) if platform() == "tpu" else zeros + _PADDING
    return _Sums(reference, zeros, zeros)


def _add(sums: _Sums, logits: Callable[[jax.Array], _Logits], projected: jax.Array) -> _Sums:
    """The sums with those of `logits(projected)`, against another reference where it must be."""
    values, is_target = logits(projected)
    target_logits = sums.target_logits + jnp.sum(jnp.where(is_target, values, 0.0), axis=-1)
    if platform() != "tpu":  # others have the logits in memory, and a GPU's host waits at a branch
        top = jnp.maximum(sums.reference, jnp.max(values, axis=-1))
        return _Sums(top, _total(sums, values, top), target_logits)

    def against_the_highest() -> tuple[jax.Array, jax.Array]:
        top = jnp.max(logits(projected).values, axis=-1)
        top = jnp.maximum(top, sums.reference + jnp.log(sums.total))
        # Two products, each with its sums: the compiler would make one, and keep its logits.
        again, top = jax.lax.optimization_barrier((projected, top))
        return top, _total(sums, logits(again).values, top)

    total = _total(sums, values, sums.reference)
    with jax.named_scope(RARELY):
        reference, total = jax.lax.cond(
            jnp.any(total > _REACH), against_the_highest, lambda: (sums.reference, total)
        )
    return _Sums(reference, total, target_logits)


def _total(sums: _Sums, values: jax.Array, reference: jax.Array) -> jax.Array:
    """Σ exp(z − reference) of the sums and these logits."""
    earlier = sums.total * jnp.exp(sums.reference - reference)
    return earlier + jnp.sum(jnp.exp(values - reference[..., None]), axis=-1)


def _reduce(sums: _Sums, layout: Layout) -> tuple[jax.Array, jax.Array]:
    """Log-sum-exp and target logit over the rows of all devices."""
    if not layout.vocab:
        return sums.reference + jnp.log(sums.total), sums.target_logits
    highest = jax.lax.pmax(sums.reference, layout.vocab)
    total = jax.lax.psum(sums.total * jnp.exp(sums.reference - highest), layout.vocab)
    return highest + jnp.log(total), jax.lax.psum(sums.target_logits, layout.vocab)


def _logits_gradient(
    logits: _Logits, lse: jax.Array, weights: jax.Array, z_loss: float
) -> jax.Array:
    """d/dz of w·(lse − z_y + z_loss·lse²): 1 + 2·z_loss·lse times the softmax, less the target."""
    scale = (weights * (1 + 2 * z_loss * lse))[..., None]
    probability = jnp.exp(logits.values - lse[..., None])
    return scale * probability - jnp.where(logits.is_target, weights[..., None], 0.0)


def _row_blocks(
    layout: Layout, chunking: Chunking, projected: jax.Array, rows: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """This device's rows in blocks, [n_blocks, block, K/shards], and each block's first row."""
    n_rows, n_tokens = rows.shape[0], projected.shape[0] * projected.shape[1]
    wanted = max(_ROW_UNIT, chunking.chunk * n_rows // n_tokens)
    block = min(n_rows, -(-wanted // _ROW_UNIT) * _ROW_UNIT)
    n_blocks = -(-n_rows // block)
    padded = jnp.pad(rows, ((0, n_blocks * block - n_rows), (0, 0)))
    return padded.reshape(n_blocks, block, -1), block * jnp.arange(n_blocks)


def _gather_columns(layout: Layout, shard: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Rows made whole, sent in the type of the products."""
    shard = shard.astype(dtype)
    if not layout.columns:
        return shard
    return jax.lax.all_gather(shard, layout.columns, axis=1, tiled=True)


def _scatter_columns(layout: Layout, gradient: jax.Array) -> jax.Array:
    """Of whole rows' gradients, the sum over the devices that share them: each gets its columns."""
    if not layout.columns:
        return gradient
    return jax.lax.psum_scatter(gradient, layout.columns, scatter_dimension=1, tiled=True)


def _sum_others(layout: Layout, gradient: jax.Array) -> jax.Array:
    """The sum over the devices with other tokens that `_scatter_columns` has left out."""
    others = tuple(axis for axis in layout.batch if axis not in layout.columns)
    return jax.lax.psum(gradient, others)


def _chunk_length(shape: tuple[int, ...], chunking: Chunking) -> int:
    batch, length = shape[:2]
    return min(length, max(1, chunking.chunk // batch))


def _split(array_bxL: jax.Array, chunk_length: int) -> jax.Array:
    """[b, L, ...] → [n_chunks, b, chunk_length, ...], padded with zeros where L does not divide."""
    padding = -array_bxL.shape[1] % chunk_length
    widths = [(0, 0), (0, padding)] + [(0, 0)] * (array_bxL.ndim - 2)
    padded = jnp.pad(array_bxL, widths)
    split = padded.reshape(array_bxL.shape[0], -1, chunk_length, *array_bxL.shape[2:])
    return jnp.moveaxis(split, 1, 0)


def _join(array: jax.Array) -> jax.Array:
    """[n_chunks, b, chunk_length, ...] → [b, n_chunks·chunk_length, ...]."""
    moved = jnp.moveaxis(array, 0, 1)
    return moved.reshape(moved.shape[0], -1, *moved.shape[3:])
