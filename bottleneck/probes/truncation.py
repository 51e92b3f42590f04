"""Heads cut to rank r, for every r at once: pairs of D×D maps whose first r columns give rank r.

D: hidden width; W: the head [V, D]; C: E[h hᵀ] [D, D]. The logits of the rank-r head are
(h @ encode[:, :r]) @ (W @ decode[:, :r])ᵀ, so those of all ranks are partial sums of one product.
Everything here is float64 on the host, from the head's D×D core alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Eigenvalues of C below this share of the largest count as this share: no hidden state goes there.
_FLOOR = 1e-10


@dataclass(frozen=True)
class Truncation:
    """encode, decode: float64 [D, D]; singular_values: float64 [D], those that are cut off."""

    encode: np.ndarray
    decode: np.ndarray
    singular_values: np.ndarray


def plain(core: np.ndarray) -> Truncation:
    """The SVD's truncation: the nearest head of rank r in Frobenius norm (Eckart and Young 1936).

    Args:
        core: an array [n, D] with the head's WᵀW, as `spectrum.HeadCore` has it. From its
            centred one come the nearest heads to W − 1·w̄ᵀ; what their logits have in common over
            the vocabulary, and W's do too, changes no probability, so the maps serve W itself.
    """
    _, singular_values, right = np.linalg.svd(_square(core))
    return Truncation(right.T, right.T, singular_values)


def whitened(core: np.ndarray, second_moment: np.ndarray) -> Truncation:
    """The truncation whose logits are nearest in mean square over the hidden states.

    With W C^{1/2} = P Σ Qᵀ it is W C^{1/2} Q_r Q_rᵀ C^{-1/2}; E‖(W − W_r) h‖² = Σ_{i>r} Σ_i².

    Args:
        core: as for `plain`.
        second_moment: [D, D], C; directions it does not have are given the floor's share.
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
    """The core with at least D rows, so that its SVD has all D right singular vectors."""
    missing = max(0, core.shape[1] - core.shape[0])
    return np.pad(core, ((0, missing), (0, 0)))
