"""How many dimensions a text's n-grams ask for: singular values, W-error, and its null.

W has a row for each context of n − 1 tokens, the estimated distribution of the token after it.
W-error(d) = √(Σ_{i>d} σᵢ² / Σσᵢ²) is the share of its norm that the best copy of rank d loses. The
null is what that would be if every entry of W stood in a row of its own, so that all rows were
one-hot: a curve of how often tokens occur, √(1 − share of the d heaviest in Σσ²), and nowhere below
W-error. Where both are one, W-error tells nothing that token frequencies do not.

Source: Godey et al. 2024, section 5.3 and figure 7. The counting is in `ngram_counts`, the rows in
`ngram_rows`, the eigenvalues with their bounds in `ngram_eigenvalues`.
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
_ARRAYS = ("singular_values", "w_error", "w_error_least", "null", "coverage")
DIMENSIONS = 4000  # up to which W-error is found within the tolerance


@dataclass(frozen=True)
class Spectrum:
    """The singular values of W and its W-error, beside the null; V′ columns have an entry."""

    singular_values: np.ndarray  # float64 [V′], descending; those beyond `dimensions` are rough
    w_error: np.ndarray  # float64 [V′ + 1], at d = 0, 1, …
    w_error_least: np.ndarray  # float64 [V′ + 1]: it is not below this; the same where exact
    null: np.ndarray  # float64 [V′ + 1], at d = 0, 1, …, of one-hot rows
    # The same by plain counts, √(1 − share of the d most frequent next tokens): the null where each
    # context has one window.
    coverage: np.ndarray  # float64 [tokens that occur + 1]
    facts: Mapping[str, Any]  # what W is made of, as plain values
    halves: Halves | None = None  # the W-error without chance, where it was asked for

    @property
    def is_known(self) -> np.ndarray:
        """Where W-error is within the tolerance of what it is, bool [V′ + 1]."""
        return self.w_error - self.w_error_least <= TOLERANCE

    def dimensions(self, level: float) -> int:
        """The least d at which W-error is at most a level."""
        return int(np.argmax(self.w_error <= level))

    @property
    def label(self) -> str:
        """What it is, in a few words."""
        facts = self.facts
        words = [f"{facts['n']}-grams", f"{facts['contexts']:,} contexts"]
        if facts["min_count"] > 1:
            words.append(f"seen {facts['min_count']}× or more")
        if facts["space"] != "probability":
            words.append(facts["space"])
        if facts["smoothing"]:
            words.append(f"α = {facts['smoothing']:g}")
        if facts["weighting"] == "frequency":
            words.append("by frequency")
        return ", ".join(words)

    def save(self, path: Path) -> None:
        """Writes an .npz that is there whole or not at all."""
        arrays: dict[str, Any] = {"facts": json.dumps(dict(self.facts))}
        for name in _ARRAYS:
            arrays[name] = getattr(self, name)
        if self.halves is not None:
            arrays["halves_w_error"] = self.halves.w_error
            arrays["halves_null"] = self.halves.null
            arrays["halves_contexts"] = np.array(self.halves.n_contexts)
        write_arrays(path, arrays)

    @classmethod
    def load(cls, path: Path) -> Spectrum:
        """What `save` wrote; `UserError` where the file is not that any more."""
        arrays = read_arrays(path, "delete it, and it is computed again")
        halves = None
        if "halves_w_error" in arrays:
            keys = ("halves_w_error", "halves_null", "halves_contexts")
            w_error, null, n_contexts = (arrays[key] for key in keys)
            halves = Halves(w_error, null, int(n_contexts))
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
) -> Spectrum:
    """The singular values of the n-gram matrix of a text, its W-error, and the null curve.

    Args:
        tokens: ids, one-dimensional: an array, a memory map or a token cache's sequence.
        n: 2 to 7 tokens, a context and the token after it.
        vocab_size: every id is below it; None: one more than the greatest id.
        end_of_text: the id that ends documents, which no window goes beyond.
        sample: how many windows are drawn; None: all are counted.
        seed: of the draws.
        dimensions: d up to which W-error is found to 1e-3 of its value.
        memory: bytes, beside the libraries; what does not fit goes to a temporary folder.
        exact: find all eigenvalues, whatever time it takes.
        split_half: find the W-error without chance as well.
        estimate: the fields of `ngram_rows.Estimate`: space, weighting, smoothing, min_count,
            contexts.
    Raises:
        UserError: where there is no window, W is 0, or an argument is not allowed.
    """
    size = largest_id(tokens) + 1 if vocab_size is None else vocab_size
    windows = Windows(n, size, end_of_text, sample, seed)
    how = Estimate(**estimate, seed=seed)
    if split_half:
        check_comparable(how)
    with tempfile.TemporaryDirectory(prefix="ngrams-") as folder:
        table = count(tokens, windows, Path(folder), memory=memory / 2)
        return spectrum_of(
            table,
            how,
            Path(folder),
            dimensions=dimensions,
            memory=memory,
            exact=exact,
            split_half=split_half,
        )


def spectrum_of(
    table: Table,
    estimate: Estimate,
    folder: Path,
    *,
    dimensions: int = DIMENSIONS,
    memory: float = MEMORY,
    exact: bool = False,
    split_half: bool = False,
) -> Spectrum:
    """The spectrum of one estimate from counts; `folder` takes what memory does not hold."""
    made = rows(table, estimate, memory=memory / 4, folder=folder)
    gram = Gram.of(made)
    if not gram.trace > 0:
        raise UserError("every entry of W is 0: the contexts say nothing in this space")
    # Beside the dense matrices there are the sparse rows, three times at most.
    sparse = 3 * 12 * made.branching.nnz
    room = max(memory - sparse, memory / 4)
    found = eigenvalues(gram, dimensions, memory=room, exact=exact)
    computed, least = found.w_error()
    halves = None
    if split_half:
        halves = compare_halves(table, estimate, folder, memory=room)
    facts = {
        **dataclasses.asdict(estimate),
        **{f"windows_{k}" if k == "seed" else k: v for k, v in vars(table.windows).items()},
        "contexts": made.n_contexts,
        "windows": int(made.unigram.sum()),
        "one_hot_share": made.one_hot_share,
        "columns": len(found.values),
        "norm": float(np.sqrt(found.trace)),
        "dimensions": dimensions,
        "method": found.method,
        "w_error_within": float(np.max((computed - least)[: dimensions + 1])),
        "tolerance": TOLERANCE,
    }
    values = np.sqrt(np.maximum(found.values, 0.0))
    null, coverage = w_error_of(made.squares), w_error_of(made.unigram)
    return Spectrum(values, computed, least, null, coverage, facts, halves)
