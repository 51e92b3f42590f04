"""Tokens to batches: windows over a whole split, shuffled differently in every epoch.

Window i reads tokens i·L to i·L + L. Its first token is only an input and its last only a target,
so windows share no target. The batch of a step is a function of the seed and the step. Resuming
needs no stored state, and the number of hosts changes nothing.

B: sequences in a batch. L: tokens in a sequence. n: validation windows.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bottleneck.data.tokens import Split, TokenCache
from bottleneck.errors import UserError

# The arrays of a batch, each [B, L].
BATCH_TYPES = {"inputs": np.int32, "targets": np.int32, "weights": np.float32}

_STEPS_AHEAD = 8  # read in the background: steps are dispatched in bursts
_BLOCK = 2**16  # tokens per read when searching for one


class Batches:
    """Training batches with random access by step."""

    def __init__(
        self, cache: TokenCache, *, batch_size: int, sequence_length: int, seed: int
    ) -> None:
        """Raises `UserError` if the training split is shorter than one window."""
        import grain  # late: it imports jax, and a wrong config is reported before that

        self.batch_size = batch_size
        self.sequence_length = sequence_length
        self._tokens = cache.tokens("train")
        self.n_windows = (len(self._tokens) - 1) // sequence_length
        if self.n_windows < 1:
            raise UserError(
                f"the training split has {len(self._tokens):,} tokens, fewer than a window of "
                f"config.train.sequence_length + 1 = {sequence_length + 1:,}"
            )
        # grain shuffles epoch e with seed + e: adjacent seeds would share orders, one epoch apart.
        mixed_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
        self._order = grain.MapDataset.range(self.n_windows).shuffle(mixed_seed).repeat()

    def windows(self, step: int, rows: slice | np.ndarray = slice(None)) -> list[int]:
        """Returns the window number of each row of a step's batch, or of the selected rows."""
        places = step * self.batch_size + np.arange(self.batch_size)[rows]
        return [int(self._order[int(place)]) for place in places]

    def batch(self, step: int, rows: slice | np.ndarray = slice(None)) -> dict[str, np.ndarray]:
        """Returns the batch of a step, which may span two epochs, or its rows by slice or index.

        Returns:
            inputs, targets: int32 [B, L]; targets are inputs shifted by one token.
            weights: float32 [B, L], all 1.
        """
        length = self.sequence_length
        starts = [window * length for window in self.windows(step, rows)]
        tokens = [self._tokens[start : start + length + 1] for start in starts]
        windows_Bx1pL = np.array(tokens, np.int32).reshape(len(starts), length + 1)
        return {
            "inputs": windows_Bx1pL[:, :-1],
            "targets": windows_Bx1pL[:, 1:],
            "weights": np.ones((len(starts), length), np.float32),
        }

    def iterate(
        self,
        start: int,
        stop: int,
        rows: slice | np.ndarray = slice(None),
        then: Callable[[dict[str, np.ndarray]], Any] = lambda batch: batch,
    ) -> Iterator[tuple[int, Any]]:
        """Yields (step, batch) for `start` ≤ step < `stop`, read ahead by a background thread.

        The result of `then` replaces each batch. Closing the iterator ends the reading.
        """
        import grain

        steps = grain.MapDataset.range(start, stop).map(
            lambda step: (step, then(self.batch(step, rows)))
        )
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_STEPS_AHEAD)
        yield from steps.to_iter_dataset(options)


def validation_windows(
    cache: TokenCache, n_tokens: int, sequence_length: int, split: Split = "validation"
) -> dict[str, np.ndarray]:
    """Returns fixed windows for evaluation, spread evenly over the validation or another split.

    n = n_tokens // L, at least 1. If the split is smaller, all of it is used, and the last window
    is padded with targets of weight 0.

    Returns:
        inputs, targets: int32 [n, L].
        weights: float32 [n, L], 1 for a token of the split, 0 for padding.
        documents: int32 [n, L], the document of each target, numbered from 0 in order, to cluster
            standard errors by; 0 for padding.
    Raises: `UserError` if the split has no target.
    """
    tokens = cache.tokens(split)
    n_targets, length = len(tokens) - 1, sequence_length
    if n_targets < 1:
        name, size = ("training", "smaller") if split == "train" else ("validation", "larger")
        raise UserError(
            f"the {name} split is empty; config.data.validation_fraction must be {size}"
        )
    n = min(max(n_tokens // length, 1), -(-n_targets // length))
    # If all windows are used, the last may be partial; otherwise only complete ones are.
    starts = [length * (i * max(n_targets // length, n) // n) for i in range(n)]
    windows_nx1pL = np.zeros((n, length + 1), np.int32)
    weights_nxL = np.zeros((n, length), np.float32)
    documents_nxL = np.zeros((n, length), np.int32)
    document, end = 0, 0  # of the last target so far, and its position
    for i, start in enumerate(starts):
        window = tokens[start : start + length + 1]
        # Reads the text between two windows only until a document ends in it.
        between = (tokens[j : min(j + _BLOCK, start)] for j in range(end, start, _BLOCK))
        document += any((block == cache.end_of_text).any() for block in between)
        of_targets = document + np.cumsum(window[:-1] == cache.end_of_text)
        document, end = of_targets[-1], start + length
        windows_nx1pL[i, : len(window)] = window
        weights_nxL[i, : len(of_targets)] = 1
        documents_nxL[i, : len(of_targets)] = of_targets
    numbered = np.unique(documents_nxL, return_inverse=True)[1]
    return {
        "inputs": windows_nx1pL[:, :-1],
        "targets": windows_nx1pL[:, 1:],
        "weights": weights_nxL,
        "documents": numbered.reshape(n, length).astype(np.int32),
    }
