"""Means over tokens, with standard errors clustered by document. Uses only numpy.

N: tokens; g: documents; n: quantities; S: resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DocumentSums:
    """Sums over the tokens of each document: totals, float64 [g, n], and n_tokens, int [g]."""

    totals: np.ndarray
    n_tokens: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, documents: np.ndarray) -> DocumentSums:
        """Returns the sums of values [N, n] by the documents [N] of their tokens."""
        _, numbers, n_tokens = np.unique(documents, return_inverse=True, return_counts=True)
        totals = np.zeros((len(n_tokens), values.shape[1]))
        np.add.at(totals, numbers, values)
        return cls(totals, n_tokens)

    def means(self) -> np.ndarray:
        """Returns means over tokens, float64 [n]."""
        return self.totals.sum(axis=0) / self.n_tokens.sum()

    def standard_errors(self) -> np.ndarray:
        """Returns standard errors of the means, float64 [n]; NaN for a single document.

        They are √(g/(g−1)·Σ_d (Σ_{i∈d} (x_i − x̄))²)/N. Source: Liang and Zeger 1986, with documents
        as clusters.
        """
        n_documents = len(self.n_tokens)
        if n_documents < 2:
            return np.full(self.totals.shape[1], np.nan)
        residuals = self.totals - self.n_tokens[:, None] * self.means()
        scale = n_documents / (n_documents - 1)
        return np.sqrt(scale * np.sum(residuals**2, axis=0)) / self.n_tokens.sum()

    def resampled_means(self, n_resamples: int, seed: int = 0) -> np.ndarray:
        """Returns the means over documents drawn with replacement: float64 [S, n].

        All quantities share each draw, so that differences between them are paired by document.
        """
        g = len(self.n_tokens)
        counts_Sxg = np.random.default_rng(seed).multinomial(g, np.full(g, 1 / g), n_resamples)
        return counts_Sxg @ self.totals / (counts_Sxg @ self.n_tokens)[:, None]
