"""The forms of a scaling law, L = E + a sum of powers, and the grid of starts to fit each from.

N: parameters; T: training tokens; R: rank of the head; D: hidden width; ρ = R/D; θ: log
coefficients and exponents; n: points; K: terms, E being one; P: constants of a law.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bottleneck.errors import UserError, suggestion

# Starts of log E, of other log coefficients, and of exponents: Hoffmann et al. 2022, appendix D.3.
_GRID = (np.linspace(-1, 1, 5), np.linspace(0, 25, 6), np.linspace(0, 2, 5))
# With a rank in the law the same grid would have 135,000 starts; this one has 2,187 at most.
_COARSE_GRID = (np.linspace(-1, 1, 3), np.linspace(0, 20, 3), np.linspace(0, 1, 3))


@dataclass(frozen=True)
class Form:
    """A law L = E + Σ_k C_k·Π_x x^(−γ_kx): a log-sum-exp of terms that are linear in log C and γ.

    terms: coefficient → ((exponent, quantity), …), with the quantities of `log_quantities`.
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
        """The names of the quantities in the law: of "N", "T", "R" and "ρ"."""
        return frozenset(quantity for term in self.terms.values() for _, quantity in term)

    def theta(self, constants: Mapping[str, Any]) -> np.ndarray:
        """Returns the given constants in the form's order, coefficients as logarithms: [P, …]."""
        kept = {name: constants[name] for name in self.constants if name in constants}
        return np.array([np.log(v) if k in self.coefficients else v for k, v in kept.items()])

    def named(self, names: Sequence[str], theta: np.ndarray) -> dict[str, Any]:
        """Returns the constants of these names by name: the inverse of `theta`."""
        return {
            name: np.exp(value) if name in self.coefficients else value
            for name, value in zip(names, theta, strict=True)
        }

    def design(self, quantities: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns M, float64 [n, K, P], of log L = logsumexp_k (M θ)_k.

        Raises: `UserError` if the form names a quantity that is missing.
        """
        if not self.quantities <= quantities.keys():
            needed = "rank and width" if "ρ" in self.quantities else "rank"
            raise UserError(f"the law {self.formula} needs the {needed} of every point")
        names, n = self.constants, len(quantities["N"])
        design = np.zeros((n, len(self.coefficients), len(names)))
        for k, coefficient in enumerate(self.coefficients):
            design[:, k, names.index(coefficient)] = 1
            for exponent, quantity in self.terms.get(coefficient, ()):
                design[:, k, names.index(exponent)] -= quantities[quantity]
        return design

    def starts(self, free: Sequence[str]) -> np.ndarray:
        """Returns the grid of starts over the free constants, in their order: float64 [S, P].

        `CHINCHILLA` with no constant fixed has the 4,500 of Hoffmann et al. 2022, appendix D.3.
        """
        has_rank = len(self.constants) > len(CHINCHILLA.constants)
        e, coefficients, exponents = _COARSE_GRID if has_rank else _GRID
        grid_of = dict.fromkeys(self.constants, exponents)
        grid_of |= dict.fromkeys(self.coefficients, coefficients) | {"E": e}
        grids = [grid_of[name] for name in free]
        return np.array(list(itertools.product(*grids)), np.float64).reshape(-1, len(free))


CHINCHILLA = Form(
    "chinchilla", "E + A/N^alpha + B/T^beta", {"A": (("alpha", "N"),), "B": (("beta", "T"),)}
)

# The head is a bottleneck of its own. Its cost depends on R alone, however large the model is and
# however long it trains: the error of a rank-R approximation of the text's own distribution.
ADDITIVE = Form(
    "additive", "E + A/N^alpha + B/T^beta + G/R^gamma", {**CHINCHILLA.terms, "G": (("gamma", "R"),)}
)

# The head lets R of D directions through, so the model acts like one of N·ρ^(gamma/alpha)
# parameters: at the same ρ, a rank costs a larger model less. The rank acts on N because a model
# that is narrower throughout has fewer parameters and reads no fewer tokens. With ρ and not R in
# it, the law of full heads is Chinchilla's own, without another constant.
EFFECTIVE_WIDTH = Form(
    "effective_width",
    "E + A/(N^alpha·(R/D)^gamma) + B/T^beta",
    {"A": (("alpha", "N"), ("gamma", "ρ")), "B": (("beta", "T"),)},
)

# The head passes R of D directions of the gradient back, so the model learns as from
# T·ρ^(gamma/beta) tokens: the longer the training, the less a rank costs.
EFFECTIVE_DATA = Form(
    "effective_data",
    "E + A/N^alpha + B/(T^beta·(R/D)^gamma)",
    {"A": (("alpha", "N"),), "B": (("beta", "T"), ("gamma", "ρ"))},
)

FORMS = {form.name: form for form in (CHINCHILLA, ADDITIVE, EFFECTIVE_WIDTH, EFFECTIVE_DATA)}


def form_of(form: Form | str) -> Form:
    """Returns the form of a name in `FORMS`, or the form itself; `UserError` if it is unknown."""
    if isinstance(form, Form):
        return form
    if form not in FORMS:
        raise UserError(f"form={form} is unknown; {suggestion(form, [*FORMS])}")
    return FORMS[form]


def log_quantities(
    n_params: np.ndarray,
    n_tokens: np.ndarray,
    rank: np.ndarray | None = None,
    width: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Returns the logarithms of "N" and "T", and of "R" and "ρ" if rank and width are given."""
    given = {"N": n_params, "T": n_tokens}
    if rank is not None:
        given["R"] = rank
        if width is not None:
            given["ρ"] = np.asarray(rank, np.float64) / np.asarray(width, np.float64)
    return {name: np.log(np.asarray(values, np.float64)) for name, values in given.items()}
