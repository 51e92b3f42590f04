"""The numbers of Godey, de la Clergerie and Sagot 2024: those printed, and points of figure 1.

N: total parameters; T: training tokens.
"""

from __future__ import annotations

import numpy as np

from bottleneck.config import ModelConfig
from bottleneck.laws.points import Points
from bottleneck.laws.saturation import LossSeries
from bottleneck.laws.scaling_law import ScalingLaw
from bottleneck.model.accounting import count_parameters
from bottleneck.model.family import PYTHIA, pythia
from bottleneck.paper.curves import TOKENS_PER_STEP, digitised

LAST_STEP = 143_000
DIGITISED_STEP = 140_000  # the last one in figure 1a; figure 1b counts its FLOPs

# Section 3.2: A and α were fitted; B, β and E are Hoffmann et al.'s.
HOFFMANN = {"B": 410.7, "beta": 0.28, "E": 1.69}
LAW = ScalingLaw(E=1.69, A=119.09, B=410.7, alpha=0.246, beta=0.28)

FITTED = ("410M", "1B", "1.4B", "2.8B", "6.9B", "12B")
SMALL = ("14M", "31M", "70M", "160M")

# Table 1, Pythia-160M, zero-shot. In the row of the final checkpoint LAMBADA's perplexity and
# accuracy are swapped. EleutherAI's evaluation of step 143,000 has 38.06 and 32.8 %.
TABLE_1 = {
    "checkpoint": ("best", "final"),
    "LAMBADA perplexity": (24.6, 32.9),
    "LAMBADA accuracy, %": (40.3, 38.0),
    "StoryCloze, %": (59.6, 57.2),
    "WikiText perplexity": (30.47, 33.4),
    "SciQ, %": (79.6, 73.4),
    "ARC-easy, %": (46.5, 43.2),
}

# Figure 2, last layer; read off by eye.
FIGURE_2 = {
    "Pythia 14M, 31M": 0.99,
    "Pythia 70M, 160M": 0.98,
    "Pythia 410M": 0.20,
    "Pythia 1B and larger": 0.15,
    "GPT-2 small": 0.83,
    "GPT-2 medium": 0.60,
    "GPT-2 large, xl": 0.12,
    "OPT, all": 0.07,
    "Gemma 2B": 0.57,
    "Gemma 7B": 0.05,
}


def n_params(name: str) -> int:
    """Returns N of a Pythia model by the paper's name for it, such as "160M"."""
    size = name.lower()
    assert size in PYTHIA, name
    return count_parameters(ModelConfig(**pythia(size))).total


def figure_1a() -> dict[str, LossSeries]:
    """Model → its loss on 50,000 tokens of the Pile every 5,000 steps."""
    steps = 1000 * np.array(digitised()["fig1a_steps_k"])
    return {
        name: LossSeries(f"Pythia {name}", steps, np.array(loss))
        for name, loss in digitised()["fig1a"].items()
    }


def final_points(names: tuple[str, ...], step: int = DIGITISED_STEP) -> Points:
    """Returns the last losses of models in figure 1b, assigned to a step."""
    losses = digitised()["fig1b_final"]
    sizes = [n_params(name) for name in names]
    tokens = np.full(len(names), float(step * TOKENS_PER_STEP))
    return Points(np.array(sizes), tokens, np.array([losses[name] for name in names]))


def best_points() -> Points:
    """Returns the best losses of the small models in figure 1b, at their steps."""
    losses, thousands = np.array([digitised()["fig1b_best"][name] for name in SMALL]).T
    sizes = [n_params(name) for name in SMALL]
    return Points(np.array(sizes), 1000 * thousands * TOKENS_PER_STEP, losses)
