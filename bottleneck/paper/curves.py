"""The curves of Godey et al. 2024, read off the figures of the paper (`digitised.json`).

Readings are accurate to about half a percent of an axis.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from typing import Any, Literal

import numpy as np

Quantity = Literal["loss", "singular_entropy", "anisotropy"]

TOKENS_PER_STEP = 1024 * 2048  # of every Pythia model (Biderman et al. 2023)

# D → the Pythia model of the paper's figures 1a, 3, 4 and 5 with that width.
MODELS = {128: "14M", 256: "31M", 512: "70M", 768: "160M", 1024: "410M"}

_FIGURES = {"singular_entropy": "fig5_singular_entropy", "anisotropy": "fig3_last_layer_anisotropy"}

# Figure 4: σᵢ/σ₀ at these i, by model and step.
INDICES = (1, 2, 10, 50, 100)
SPECTRA = {
    "14M": {40_000: (0.65, 0.46, 0.34, 0.26, 0.21), 143_000: (0.043, 0.031, 0.019, 0.011, 0.011)},
    "31M": {66_000: (0.60, 0.49, 0.38, 0.29, 0.26), 143_000: (0.035, 0.025, 0.015, 0.010, 0.010)},
    "70M": {68_000: (0.56, 0.48, 0.36, 0.27, 0.25), 143_000: (0.055, 0.043, 0.028, 0.019, 0.017)},
    "160M": {85_000: (0.56, 0.34, 0.24, 0.19, 0.17), 143_000: (0.086, 0.050, 0.027, 0.016, 0.016)},
    "410M": {143_000: (0.18, 0.17, 0.13, 0.11, 0.10)},
}


def curve(quantity: Quantity, d_model: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (steps, values) of the model of a width; empty if the paper shows none.

    - loss: nats per token, on 50,000 tokens of the Pile (figure 1a).
    - singular_entropy: nats (figure 5).
    - anisotropy: of the last layer (figure 3).
    """
    name, read = MODELS.get(d_model), digitised()
    if name is None:
        return np.empty(0), np.empty(0)
    if quantity == "loss":
        return 1000.0 * np.array(read["fig1a_steps_k"]), np.array(read["fig1a"][name])
    points = read[_FIGURES[quantity]][name]
    return 1000.0 * np.array([float(k) for k in points]), np.array(list(points.values()))


@functools.cache
def digitised() -> dict[str, Any]:
    """Returns all readings off the figures, by figure."""
    file = importlib.resources.files("bottleneck.paper") / "digitised.json"
    return json.loads(file.read_text(encoding="utf-8"))


def w_errors() -> dict[tuple[str, str], dict[int, float]]:
    """Returns figure 7: W-error by dimension d, for each (corpus, tokenizer) of 5-grams."""
    corpora = {"Pile": "The Pile", "Wikitext": "WikiText", "IMDb": "IMDb"}
    tokenizers = {"pythia": "Pythia's tokens", "llama2": "Llama 2's tokens"}
    found = {}
    for key, values in digitised()["fig7_W_error"].items():
        _, tokenizer, corpus = key.split("_")
        known = {int(d): error for d, error in values.items() if error is not None}
        found[corpora[corpus], tokenizers[tokenizer]] = known
    return found
