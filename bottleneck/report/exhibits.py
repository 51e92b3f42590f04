"""The exhibits of a report: each figure with its title and the sentence on how to read it.

R: rank of the head; D: hidden width; W: the head; σ: its singular values; C: second moment of the
hidden states.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from bottleneck.frozen.figures import frozen_heads
from bottleneck.report import figures, gaps
from bottleneck.report.calibration import SLACK, calibration
from bottleneck.report.saturation import saturation_figure


@dataclass(frozen=True)
class Exhibit:
    """A figure of the report; `sentence` tells how to read it."""

    name: str  # of its files
    title: str
    sentence: str
    draw: Callable[..., Figure]  # takes runs; raises NothingToShow
    of_paper: str = ""  # added if the figure shows the paper's curves too


EXHIBITS = (
    Exhibit(
        "loss",
        "Loss against training tokens",
        "Cross-entropy on training batches (thin) and on the same validation tokens each time "
        "(thick; bars are one standard error). The dashed line is the corpus's unigram entropy: a "
        "model below it uses context.",
        figures.loss,
        "Broad and pale: Pythia on 50,000 tokens of the Pile, figure 1a.",
    ),
    Exhibit(
        "saturation",
        "Saturation: does the loss end above its own earlier level?",
        "Validation loss relative to its minimum, without the first tenth of the steps. A run "
        "saturates if its last quarter lies above an earlier quarter by more than noise reaches "
        "once in twenty; p is that probability. The bar at the end is the 95 % interval over "
        "documents of the last loss relative to the minimum. Right: the step at which a broken "
        "line fitted to a rise bends. The loss appears there only if it rises.",
        saturation_figure,
    ),
    Exhibit(
        "loss_by_rank",
        "Final validation loss against the rank of the head",
        "Each point is a finished run, with one standard error. The number beside it is its gap to "
        "the full-rank run of the same experiment. Where the curve is flat, rank costs nothing.",
        figures.loss_by_rank,
    ),
    Exhibit(
        "rank_law",
        "A law of the loss against the rank of the head",
        "Left: final validation losses of runs that differ only in head rank, one colour per "
        "width, with a least-squares fit of L∞ + c·R^−p. Right: the same minus L∞, where the law "
        "is a straight line of slope −p. Points that bend away from it contradict the law.",
        figures.rank_law,
    ),
    Exhibit(
        "calibration",
        "Calibration: measured losses on a language whose rank is known",
        "Final validation losses (dots; bars are one standard error) against values known without "
        "training: the entropy rate, a lower bound for any model (dashed); the best loss of any "
        "head of rank R (line); and the true rank ρ, from which the two are equal (dotted). The "
        "estimated rank is the lowest from which every loss is within "
        f"{SLACK:g} nats and two standard errors of the entropy rate.",
        calibration,
    ),
    Exhibit(
        "gap_by_rank",
        "Gap against the rank to which a trained head is truncated",
        "Rise of the validation loss when the trained head W is replaced by its best rank-r "
        "approximation: of W itself (left), and of W weighted by C, the second moment of the "
        "hidden states (right). Bars are one standard error. A hollow triangle is an upper limit, "
        "two standard errors up, for a gap that cannot be told from zero.",
        figures.gap_by_rank,
    ),
    Exhibit(
        "gap_by_w_error",
        "Gap against W-error",
        "Each point is one truncation of a head at its last probe. Its W-error √(Σσᵢ² beyond r / "
        "Σσᵢ²) is the fraction of the head's norm that it removes. If all curves coincide, the "
        "removed norm alone sets the gap; if they part, the directions matter. Gaps within two "
        "standard errors of zero are omitted.",
        gaps.gap_by_w_error,
    ),
    Exhibit(
        "theory",
        "Theory against measurement",
        "Measured gaps against upper bounds (dashed) that hold if W minimises the loss on these "
        "tokens, which a trained head nearly does. Left: √2·E‖h‖·√Σσᵢ² over the removed values, "
        "theorem 5.3 of Godey et al. (2024) with its constant. Right: the first-order term "
        "vanishes at a minimum, so ¼·Σσᵢ² bounds the gap once W is weighted by C. Crosses are the "
        "gap to second order in the change Δ of the logits, the mean of "
        "E_p[Δ] − Δ_target + ½·Var_p(Δ). Where they leave the dots, Δ is not small.",
        gaps.against_bounds,
    ),
    Exhibit(
        "anatomy",
        "Parts of the gap",
        "Left: fraction of the gap from the rarest and from the most frequent third of the text's "
        "tokens, by their counts in the training text. Dotted: one third. Below 0 %, truncation "
        "makes those tokens more likely. Right: fraction of tokens for which the truncated head "
        "keeps the most likely next token.",
        gaps.anatomy,
    ),
    Exhibit(
        "frozen_heads",
        "Heads of every rank on frozen features",
        "Heads trained on the run's frozen hidden states: validation loss (left) and accuracy "
        "(middle) against rank, and loss against the W-error of the run's own head at that rank "
        "(right). Lines are L∞ + c·r^−p. Dotted: the run's own head, truncated without training. "
        "Dashed: the best full-rank head, a convex problem, stopped at its least validation loss.",
        frozen_heads,
    ),
    Exhibit(
        "spectrum",
        "Singular values of the head over training",
        "Colour is σᵢ/σ₀, the i-th singular value over the largest; training runs from left to "
        "right. A column that is bright all the way down is a flat spectrum. A column that turns "
        "dark is dominated by a few directions.",
        figures.spectrum,
        "Dots, in the same colours: Pythia, figure 4; a dot that is hard to see agrees.",
    ),
    Exhibit(
        "singular_entropy",
        "Singular entropy of the head over training",
        "Distance of the spectrum from flat: 0 if all singular values are equal, ln D if only one "
        "is nonzero. Dotted: the minimum at that rank, ln(D/R). Centring removes the mean row of "
        "W, which does not change the softmax.",
        figures.singular_entropy,
        "Broad and pale: Pythia, figure 5.",
    ),
    Exhibit(
        "gradient_survival",
        "Gradient that survives the head",
        "Fraction of the norm of ∂loss/∂logits that the head passes back, over training. Of its V "
        "components, the hidden states receive only the part in the column space of W. Dotted: "
        "√(R/V), expected for a random subspace of dimension R.",
        gaps.gradient_survival,
    ),
    Exhibit(
        "anisotropy",
        "Anisotropy of the hidden states",
        "Mean cosine similarity between hidden states of different tokens, by layer at the last "
        "probe (left) and of the last layer over training (right). Near 0 their directions are "
        "spread evenly; near 1 they coincide.",
        figures.anisotropy,
        "Broad and pale: Pythia, figure 3.",
    ),
)
