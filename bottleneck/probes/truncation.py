"""Truncations of a head to every rank r: pairs of D×D maps whose first r columns give rank r.

D: hidden width; W: the head [V, D]; C: E[h hᵀ] [D, D]. The logits at rank r are
(h @ encode[:, :r]) @ (W @ decode[:, :r])ᵀ, so all ranks are partial sums of one product. The host
computes the maps in float64 from the head's D×D core.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Floor of C's eigenvalues relative to the largest; no hidden state points there.
_FLOOR = 1e-10


@dataclass(frozen=True)
class Truncation:
    """Maps encode and decode, float64 [D, D], and the singular_values they order, float64 [D]."""

    encode: np.ndarray
    decode: np.ndarray
    singular_values: np.ndarray

    def maps(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns encode and decode in float32, for the device."""
        return self.encode.astype(np.float32), self.decode.astype(np.float32)


def plain(core: np.ndarray) -> Truncation:
    """Returns the truncation by SVD: the nearest head of rank r in Frobenius norm.

    Args:
        core: [n, D] with the head's WᵀW, from `spectrum.HeadCore`. Its centred core gives maps
            that suit W too: a shift of all logits changes no probability.
    Source: Eckart and Young 1936.
    """
    _, singular_values, right = np.linalg.svd(_square(core))
    return Truncation(right.T, right.T, singular_values)


def whitened(core: np.ndarray, second_moment: np.ndarray) -> Truncation:
    """Returns the truncation with the least mean squared error of the logits over hidden states.

    With W C^{1/2} = P Σ Qᵀ it is W C^{1/2} Q_r Q_rᵀ C^{-1/2}; E‖(W − W_r) h‖² = Σ_{i>r} Σ_i².
    `core` is as for `plain`; the eigenvalues of the second moment C [D, D] are floored.
    """
    root, inverse = square_roots(second_moment)
    _, singular_values, right = np.linalg.svd(_square(core) @ root)
    return Truncation(inverse @ right.T, root @ right.T, singular_values)


def square_roots(second_moment: np.ndarray, floor: float = _FLOOR) -> tuple[np.ndarray, np.ndarray]:
    """Returns C^{1/2} and C^{-1/2}, float64 [D, D], with C's eigenvalues at least floor·λ_max."""
    eigenvalues, vectors = np.linalg.eigh(np.asarray(second_moment, np.float64))
    scales = np.sqrt(np.maximum(eigenvalues, floor * eigenvalues[-1]))
    return (vectors * scales) @ vectors.T, (vectors / scales) @ vectors.T


def _square(core: np.ndarray) -> np.ndarray:
    """Returns the core padded to D rows, so that its SVD has all D right singular vectors."""
    missing = max(0, core.shape[1] - core.shape[0])
    return np.pad(core, ((0, missing), (0, 0)))
