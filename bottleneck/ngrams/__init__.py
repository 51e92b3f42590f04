"""Spectra of the n-grams of a text: the dimensions that its next-token distributions need.

W [C, V] has a row for each context of n − 1 tokens: the estimated distribution of the next token.
C: contexts; V: ids; d: dimensions; σ: singular values of W; W-error(d) = √(Σ_{i>d} σᵢ² / Σσᵢ²).

`spectrum(tokens, n=5)` counts, estimates W and returns σ, W-error and the null curve of token
frequencies alone. Here each of three tokens has one successor, so W has three equal σ:

>>> import numpy as np
>>> from bottleneck import ngrams
>>> curve = ngrams.spectrum(np.arange(300) % 3, n=2)
>>> curve.w_error.round(3)
array([1.   , 0.816, 0.577, 0.   ])

- `Windows` and `count` count n-grams in bounded memory, `Estimate` defines the entries of W.
- `NgramStudy` and `carry_out` keep many curves in a folder, for `summary` and `figure_7`.

Importing this package needs no jax.
"""

from bottleneck.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "spectra": ["NgramSpectrum", "spectrum"],
        "windows": ["Windows", "largest_id"],
        "counts": ["CountPlan", "Table", "count", "plan"],
        "rows": ["Estimate"],
        "halves": ["Halves"],
        "study": ["NgramStudy", "carry_out", "draw", "summary"],
        "figure": ["figure_7"],
    },
)
