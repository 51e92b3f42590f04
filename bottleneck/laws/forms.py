"""The forms that a scaling law can have: L = E + a sum of powers, and how its starts are laid out.

N: parameters; T: training tokens; R: rank of the head; D: hidden width; ρ = R/D, the share of the
hidden width that the head lets through; n: points; K: terms, E being one; P: constants of a law.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# Hoffmann et al. 2022, appendix D.3: a, b are log A, log B and e is log E.
_EXPONENT_STARTS = (0.0, 0.5, 1.0, 1.5, 2.0)
_COEFFICIENT_STARTS = (0.0, 5.0, 10.0, 15.0, 20.0, 25.0)
_E_STARTS = (-1.0, -0.5, 0.0, 0.5, 1.0)
# With a rank in the law the same grid would have 135,000 starts; this one has 2,187 at most.
_COARSE_EXPONENTS = (0.0, 0.5, 1.0)
_COARSE_COEFFICIENTS = (0.0, 10.0, 20.0)
_COARSE_E = (-1.0, 0.0, 1.0)


@dataclass(frozen=True)
class Form:
    """A law L = E + Σ_k C_k·Π_x x^(−γ_kx), which is a log-sum-exp of what is linear in log C and γ.

    terms: coefficient → ((exponent, quantity), …); quantities are those of `log_quantities`.
    """

    name: str
    formula: str
    terms: Mapping[str, tuple[tuple[str, str], ...]]

    @property
    def coefficients(self) -> tuple[str, ...]:
        """E first; the fit holds their logarithms."""
        return ("E", *self.terms)

    @property
    def constants(self) -> tuple[str, ...]:
        """Coefficients, then exponents: E, A, B, alpha, beta, …"""
        exponents = (exponent for term in self.terms.values() for exponent, _ in term)
        return (*self.coefficients, *dict.fromkeys(exponents))

    @property
    def quantities(self) -> frozenset[str]:
        return frozenset(quantity for term in self.terms.values() for _, quantity in term)

    def design(self, quantities: Mapping[str, np.ndarray]) -> np.ndarray:
        """M, float64 [n, K, P]: log L = logsumexp_k (M θ), θ being log coefficients and exponents.

        Args:
            quantities: as `log_quantities` gives them, each [n].
        """
        names, n = self.constants, len(quantities["N"])
        design = np.zeros((n, len(self.coefficients), len(names)))
        for k, coefficient in enumerate(self.coefficients):
            design[:, k, names.index(coefficient)] = 1
            for exponent, quantity in self.terms.get(coefficient, ()):
                design[:, k, names.index(exponent)] -= quantities[quantity]
        return design

    def starts(self, free: Sequence[str]) -> np.ndarray:
        """Where to start from, over the free constants in their order: float64 [S, len(free)].

        4,500 for `CHINCHILLA` with nothing fixed, as in Hoffmann et al. 2022.
        """
        is_coarse = len(self.constants) > len(CHINCHILLA.constants)
        e, coefficients, exponents = (
            (_COARSE_E, _COARSE_COEFFICIENTS, _COARSE_EXPONENTS)
            if is_coarse
            else (_E_STARTS, _COEFFICIENT_STARTS, _EXPONENT_STARTS)
        )
        grids = [
            e if name == "E" else coefficients if name in self.coefficients else exponents
            for name in free
        ]
        return np.array(list(itertools.product(*grids)), np.float64).reshape(-1, len(free))


CHINCHILLA = Form(
    "chinchilla",
    "E + A/N^alpha + B/T^beta",
    {"A": (("alpha", "N"),), "B": (("beta", "T"),)},
)

# The head is a bottleneck of its own: what it costs depends on R alone, however large the model is
# and however long it trains, as an error of rank-R approximation of the text's own distribution.
ADDITIVE = Form(
    "additive",
    "E + A/N^alpha + B/T^beta + G/R^gamma",
    {**CHINCHILLA.terms, "G": (("gamma", "R"),)},
)

# The head lets R of D directions through, so the model acts like one of N·ρ^(gamma/alpha)
# parameters: what a rank costs shrinks as the model grows at the same ρ. N is the quantity to act
# on, as a model that is narrower throughout has fewer parameters and reads no fewer tokens; that ρ
# and not R enters makes the law of full heads Chinchilla's own, with no constant more.
EFFECTIVE_WIDTH = Form(
    "effective_width",
    "E + A/(N^alpha·(R/D)^gamma) + B/T^beta",
    {"A": (("alpha", "N"), ("gamma", "ρ")), "B": (("beta", "T"),)},
)

# The head lets R of D directions of the gradient back, so the model learns as from T·ρ^(gamma/beta)
# tokens: what a rank costs shrinks as training goes on.
EFFECTIVE_DATA = Form(
    "effective_data",
    "E + A/N^alpha + B/(T^beta·(R/D)^gamma)",
    {"A": (("alpha", "N"),), "B": (("beta", "T"), ("gamma", "ρ"))},
)

FORMS = {form.name: form for form in (CHINCHILLA, ADDITIVE, EFFECTIVE_WIDTH, EFFECTIVE_DATA)}


def log_quantities(
    n_params: np.ndarray,
    n_tokens: np.ndarray,
    rank: np.ndarray | None = None,
    width: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Logarithms of what laws are made of: "N", "T", and where they are given "R" and "ρ"."""
    given = {"N": n_params, "T": n_tokens, "R": rank, "ρ": None}
    if rank is not None and width is not None:
        given["ρ"] = np.asarray(rank, np.float64) / np.asarray(width, np.float64)
    return {
        name: np.log(np.asarray(values, np.float64))
        for name, values in given.items()
        if values is not None
    }
