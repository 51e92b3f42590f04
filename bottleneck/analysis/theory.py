"""What theory says that a cut of the head's rank costs at most, held against what it cost.

The loss of weights W on an example is L(W, x, q) = logsumexp(W x) − q·W x, in nats: x is its input
(the hidden state), q the distribution of its target. ℓ is the mean of L over n examples, W* the
minimiser of ℓ, ΔW = W − W*, and C = (1/n) Σ x xᵀ. All arithmetic is float64.

V: classes (rows of the head); D: width of the inputs; n: examples; r: rank kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.special import log_softmax, logsumexp, softmax

from bottleneck.analysis.drawing import (
    GREY,
    WIDTH,
    NothingToShow,
    legend,
    log2_ticks,
    log10_ticks,
    styled,
    styles,
)
from bottleneck.analysis.runs import Run

# Below this a bound or a gap is rounding, as beyond the rank that a head really has.
_SMALLEST_GAP = 1e-5  # nats per token

_GRADIENT_NORM = 1e-10  # at which W* counts as exact
_MOST_NEWTON_STEPS = 100  # a handful is usual


def losses(weights_VxD: np.ndarray, inputs_nxD: np.ndarray, targets_nxV: np.ndarray) -> np.ndarray:
    """L(W, x, q) of each example: float64 [n], nats."""
    logits_nxV = inputs_nxD @ weights_VxD.T
    return logsumexp(logits_nxV, axis=1) - np.sum(targets_nxV * logits_nxV, axis=1)


def minimiser(inputs_nxD: np.ndarray, targets_nxV: np.ndarray) -> np.ndarray:
    """W*: float64 [V, D], centred, where the gradient of the mean loss has a norm below 1e-10.

    The loss is convex, and strictly so in centred weights where the inputs span their space:
    Newton's method, which costs O(n·(V·D)²) a step.

    Args:
        inputs_nxD: x, of full column rank.
        targets_nxV: q; rows sum to 1. Where the examples of a class can be told from all others,
            the minimum is infinitely far, and what is returned is where the gradient has vanished.
    """
    n, n_classes, width = *targets_nxV.shape, inputs_nxD.shape[1]
    # The loss ignores 1·vᵀ. This makes such directions cost something, which keeps W centred.
    gauge = np.kron(np.full((n_classes, n_classes), 1 / n_classes), inputs_nxD.T @ inputs_nxD / n)
    weights = np.zeros((n_classes, width))
    for _ in range(_MOST_NEWTON_STEPS):
        p_nxV = softmax(inputs_nxD @ weights.T, axis=1)
        gradient = (p_nxV - targets_nxV).T @ inputs_nxD / n
        if np.linalg.norm(gradient) < _GRADIENT_NORM:
            return weights
        # Σ_n (diag(p) − p pᵀ) ⊗ x xᵀ, its first part a block for each class.
        mixed = (p_nxV[:, :, None] * inputs_nxD[:, None, :]).reshape(n, -1)
        hessian = gauge - mixed.T @ mixed / n
        for v in range(n_classes):
            block = slice(v * width, (v + 1) * width)
            hessian[block, block] += (p_nxV[:, v, None] * inputs_nxD).T @ inputs_nxD / n
        step = np.linalg.solve(hessian, gradient.ravel()).reshape(weights.shape)
        before, scale = losses(weights, inputs_nxD, targets_nxV).mean(), 1.0
        while losses(weights - scale * step, inputs_nxD, targets_nxV).mean() > before + 1e-14:
            scale /= 2
        weights = weights - scale * step
    raise ValueError(f"no minimum was reached in {_MOST_NEWTON_STEPS} steps of Newton's method")


def first_order_change(
    weights_VxD: np.ndarray,
    direction_VxD: np.ndarray,
    inputs_nxD: np.ndarray,
    targets_nxV: np.ndarray,
) -> np.ndarray:
    """The derivative of L(W + ε·M, x, q) by ε at 0: float64 [n], Σ_j p_j (M x)_j − q·M x.

    Source: Godey et al. 2024, proof of lemma 5.1, corrected: what is printed there for the first
    sum is Σ_j exp((M x)_j) / Σ_j exp((W x)_j).
    """
    p_nxV = np.exp(log_softmax(inputs_nxD @ weights_VxD.T, axis=1))
    return np.sum((p_nxV - targets_nxV) * (inputs_nxD @ direction_VxD.T), axis=1)


def lipschitz_bound(change_norm: np.ndarray, input_norm: np.ndarray) -> np.ndarray:
    """√2·‖ΔW‖_F·‖x‖ ≥ |L(W) − L(W*)| for any two weights, as the gradient p − q is at most √2 long.

    With a truncation to rank r, ‖ΔW‖_F = √Σ_{i>r} σ_i², it is theorem 5.3 of Godey et al. 2024 with
    the constant that its O(·) leaves out.
    """
    return np.sqrt(2) * np.asarray(change_norm) * np.asarray(input_norm)


def quadratic_bound(change_VxD: np.ndarray, second_moment_DxD: np.ndarray) -> float:
    """¼·tr(ΔW C ΔWᵀ) ≥ ℓ(W) − ℓ(W*): no first-order term at a minimum, and diag(p) − p pᵀ ⪯ ½·I.

    What ΔW has in common over all classes changes no loss, so it is taken out first.
    """
    centred = change_VxD - change_VxD.mean(axis=0)
    return float(np.sum(centred @ second_moment_DxD * centred)) / 4


def tails(singular_values: np.ndarray) -> np.ndarray:
    """Σ_{i>r} σ_i² for r = 1 … D: float64 [D], the last 0; σ descending."""
    squares = np.asarray(singular_values, np.float64) ** 2
    return np.append(np.cumsum(squares[:0:-1])[::-1], 0.0)  # summed from the small end


def plain_bound(singular_values: np.ndarray, mean_input_norm: float) -> np.ndarray:
    """The most that cutting W* to rank r by its SVD can cost, r = 1 … D: see `lipschitz_bound`."""
    return lipschitz_bound(np.sqrt(tails(singular_values)), np.asarray(mean_input_norm))


def whitened_bound(whitened_singular_values: np.ndarray) -> np.ndarray:
    """The most that cutting W* C^{1/2} to rank r by its SVD can cost: ¼·Σ_{i>r} σ_i², r = 1 … D.

    Args:
        whitened_singular_values: σ_i(W* C^{1/2}), of the matrix that is cut, best a centred one.
    """
    return tails(whitened_singular_values) / 4


@styled
def against_measurement(runs: Sequence[Run]) -> Figure:
    """Gap against the rank that the head is cut to, plain and whitened, with the bound on each."""
    look = styles(runs)
    needed = {"singular_values", "mean_hidden_norm", "whitened_singular_values"}
    probed = [(run, run.probe()) for run in runs if run.probe_steps and run.head_rank > 1]
    shown = [(run, probe) for run, probe in probed if needed <= probe.keys()]
    if not shown:
        raise NothingToShow("no probe says how long and how spread out the hidden states are")
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    kinds = {
        "plain": ("truncated SVD of W", r"bound √2·E‖h‖·√Σ$_{i>r}$ σᵢ²(W)"),
        "whitened": (r"truncated SVD of W C$^{1/2}$", r"bound ¼·Σ$_{i>r}$ σᵢ²(W C$^{1/2}$)"),
    }
    for panel, (kind, (title, bound_name)) in zip(panels, kinds.items(), strict=True):
        for run, probe in shown:
            if kind == "plain":
                bound = plain_bound(probe["singular_values"], float(probe["mean_hidden_norm"]))
            else:
                bound = whitened_bound(probe["whitened_singular_values"])
            cut = np.arange(1, run.head_rank)  # greater ranks take nothing away
            cut = cut[bound[cut - 1] > _SMALLEST_GAP]
            style = look[run.name]
            panel.plot(cut, bound[cut - 1], color=style.colour, lw=1, ls=(0, (4, 2)))
            ranks, gap, error = (probe[key] for key in ("ranks", f"gap_{kind}", f"gap_{kind}_se"))
            orders = [f"gap_{kind}_{order}_order" for order in ("first", "second")]
            if set(orders) <= probe.keys():
                predicted = probe[orders[0]] + probe[orders[1]]
                drawn = (ranks < run.head_rank) & (predicted > _SMALLEST_GAP)
                panel.plot(
                    *(ranks[drawn], predicted[drawn]),
                    **{"ls": "", "marker": "x", "ms": 6, "mec": style.colour},
                )
            clear = (ranks < run.head_rank) & (gap > np.maximum(2 * error, _SMALLEST_GAP))
            panel.errorbar(
                ranks[clear], gap[clear], error[clear], ms=3.5, elinewidth=0.9, **style.line
            )
        panel.set(xscale="log", yscale="log", xlabel="rank r kept", title=title)
        panel.set_ylabel("gap to the untruncated head (nats/token)")
        log2_ticks(panel.xaxis, 1, max(run.head_rank for run, _ in shown) - 1)
        log10_ticks(panel.yaxis)
        panel.label_outer()
        panel.legend(
            handles=[
                Line2D([], [], color=GREY, marker="o", ms=3.5, label="measured ± SE"),
                Line2D([], [], color=GREY, ls="", marker="x", label="predicted, second order"),
                Line2D([], [], color=GREY, lw=1, ls=(0, (4, 2)), label=bound_name),
            ]
        )
    legend(figure, {run.name: look[run.name] for run, _ in shown})
    return figure
