"""Singular values of the n-grams of a text, W-error, and its null.

A row of W is the estimated distribution of the token after a context of n − 1 tokens.
W-error(d) = √(Σ_{i>d} σᵢ² / Σσᵢ²) is the relative error of the best approximation of rank d. The
null gives every entry of W a row of its own: √(1 − share of the d heaviest tokens in Σσ²). It
depends on token frequencies alone and is at least W-error. If W-error equals it, contexts share
nothing beyond those frequencies. Source: Godey et al. 2024, section 5.3 and figure 7.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bottleneck.errors import UserError
from bottleneck.ngrams.counts import Table, count
from bottleneck.ngrams.eigenvalues import TOLERANCE, eigenvalues, w_error_of
from bottleneck.ngrams.gram import Gram
from bottleneck.ngrams.halves import Halves, check_comparable, compare_halves
from bottleneck.ngrams.rows import Estimate, rows
from bottleneck.ngrams.windows import Tokens, Windows, largest_id
from bottleneck.storage.arrays import read_arrays, write_arrays

MEMORY = 3.5e9  # bytes, beside the libraries: 4 GB with them
_ARRAYS = ("singular_values", "w_error", "w_error_least", "null")
DIMENSIONS = 4000  # the largest d at which W-error is within the tolerance


@dataclass(frozen=True)
class NgramSpectrum:
    """The singular values of W, its W-error at d = 0, 1, …, and the null."""

    singular_values: np.ndarray  # float64 [V′ columns], descending; rough beyond `dimensions`
    w_error: np.ndarray  # float64 [V′ + 1], exact or an upper bound
    w_error_least: np.ndarray  # float64 [V′ + 1], exact or a lower bound
    null: np.ndarray  # float64 [V′ + 1]
    facts: Mapping[str, Any]  # settings and sizes
    halves: Halves | None = None  # for split halves

    @property
    def is_known(self) -> np.ndarray:
        """True at each d with W-error within the tolerance, bool [V′ + 1]."""
        return self.w_error - self.w_error_least <= TOLERANCE

    def dimensions(self, level: float) -> int:
        """Returns the smallest d with W-error at most `level`."""
        return int(np.argmax(self.w_error <= level))

    @property
    def label(self) -> str:
        """A short description."""
        facts = self.facts
        words = {
            f"{facts['n']}-grams, {facts['contexts']:,} contexts": True,
            f"seen {facts['min_count']}× or more": facts["min_count"] > 1,
            facts["space"]: facts["space"] != "probability",
            f"α = {facts['smoothing']:g}": facts["smoothing"],
            "by frequency": facts["weighting"] == "frequency",
        }
        return ", ".join(word for word, is_said in words.items() if is_said)

    def save(self, path: Path) -> None:
        """Writes an .npz file, whole or not at all."""
        arrays: dict[str, Any] = {"facts": json.dumps(dict(self.facts))}
        arrays |= {name: getattr(self, name) for name in _ARRAYS}
        if self.halves is not None:
            arrays["halves_w_error"] = self.halves.w_error
            arrays["halves_contexts"] = np.array(self.halves.n_contexts)
        write_arrays(path, arrays)

    @classmethod
    def load(cls, path: Path) -> NgramSpectrum:
        """Reads the file that `save` wrote; raises `UserError` if it is damaged."""
        arrays = read_arrays(path, "delete it, and it is computed again")
        halves = None
        if "halves_w_error" in arrays:
            halves = Halves(arrays["halves_w_error"], int(arrays["halves_contexts"]))
        facts = json.loads(str(arrays["facts"]))
        return cls(**{name: arrays[name] for name in _ARRAYS}, facts=facts, halves=halves)


def spectrum(
    tokens: Tokens,
    n: int = 5,
    *,
    vocab_size: int | None = None,
    end_of_text: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    dimensions: int = DIMENSIONS,
    memory: float = MEMORY,
    exact: bool = False,
    split_half: bool = False,
    **estimate: Any,
) -> NgramSpectrum:
    """Returns the singular values of a text's n-gram matrix, its W-error, and the null.

    Args:
        tokens: ids, one-dimensional: an array, a memory map or the sequence of a token cache.
        n: 2 to 7 tokens, a context and the token after it.
        vocab_size: V; None: one more than the largest id.
        end_of_text: the id that ends documents; it may only end a window.
        sample: number of windows to draw; None: all.
        seed: of the draws.
        dimensions: largest d with W-error to an absolute 1e-3.
        memory: bytes, beside the libraries; the rest goes to a temporary folder.
        exact: find all eigenvalues, however long it takes.
        split_half: also find W-error from split halves, without the noise of counts.
        estimate: fields of `Estimate`: space, weighting, smoothing, min_count, contexts.
    Raises: `UserError` if there is no window, W is 0, or an argument is not allowed.
    """
    size = largest_id(tokens) + 1 if vocab_size is None else vocab_size
    windows = Windows(n, size, end_of_text, sample, seed)
    how = Estimate(**estimate, seed=seed)
    if split_half:
        check_comparable(how)
    with tempfile.TemporaryDirectory(prefix="ngrams-") as folder:
        table = count(tokens, windows, Path(folder), memory=memory / 2)
        return spectrum_of(table, how, Path(folder), dimensions, memory, exact, split_half)


def spectrum_of(
    table: Table,
    estimate: Estimate,
    folder: Path,
    dimensions: int,
    memory: float,
    exact: bool,
    split_half: bool,
) -> NgramSpectrum:
    """Returns the spectrum of one estimate from counts; `folder` takes arrays beyond the memory."""
    made = rows(table, estimate, memory=memory / 4, folder=folder)
    gram = Gram.of(made)
    if not gram.trace > 0:
        raise UserError(f"every entry of W is 0 in the {estimate.space} space; take another")
    # The sparse rows take memory up to three times, beside dense matrices.
    room = max(memory - 3 * 12 * made.branching.nnz, memory / 4)
    found = eigenvalues(gram, dimensions, memory=room, exact=exact)
    halves = compare_halves(table, estimate, folder, memory=room) if split_half else None
    facts = {
        **dataclasses.asdict(estimate),
        **{f"windows_{k}" if k == "seed" else k: v for k, v in vars(table.windows).items()},
        "contexts": made.n_contexts,
        "windows": int(made.unigram.sum()),
        "one_hot_share": 1 - made.branching.shape[0] / made.n_contexts,
        "columns": len(found.values),
        "norm": float(np.sqrt(found.trace)),
        "dimensions": dimensions,
        "method": found.method,
        "w_error_within": found.uncertainty(dimensions),
        "tolerance": TOLERANCE,
    }
    values = np.sqrt(np.maximum(found.values, 0.0))
    return NgramSpectrum(values, *found.w_error(), w_error_of(made.squares), facts, halves)
