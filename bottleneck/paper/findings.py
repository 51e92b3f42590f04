"""Recomputed results of the paper: tables and sentences of its page.

Each function covers one figure or table of Godey, de la Clergerie and Sagot 2024, as HTML.
N: total parameters; D: hidden width; p_end: see `laws.Saturation`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from bottleneck.drawing.html import table
from bottleneck.laws import saturation
from bottleneck.laws.onset import Onset, detect_onset
from bottleneck.laws.rank import fit_rank
from bottleneck.laws.scaling_law import ScalingLaw, fit
from bottleneck.model.family import PYTHIA
from bottleneck.paper import values as paper_values
from bottleneck.paper.curves import digitised
from bottleneck.paper.evals import LOSSES, Row, loss_series
from bottleneck.paper.values import DIGITISED_STEP, FITTED, HOFFMANN, LAST_STEP, LAW, SMALL, TABLE_1
from bottleneck.runs.reading import Run

# Besiroglu et al. 2024, from the 245 points that they read off Hoffmann et al.'s figure 4.
_BESIROGLU = {"B": 2085.43, "beta": 0.3659, "E": 1.8169}

Evals = Mapping[str, list[Row]]


def saturation_found(runs: Sequence[Run]) -> str:
    own = [series for series in map(saturation.series_of_run, runs) if series is not None]
    return (
        "<p>Does a curve end above its own earlier level? The test says yes for at most "
        f"{saturation.FALSE_POSITIVES:.0%} of curves that rise only by noise, with a correlation "
        f"of up to {saturation.NOISE_CORRELATION:g} between neighbours. A rise begins at a change "
        "of slope; – means that no change is clear.</p>"
        + _verdicts([*paper_values.figure_1a().values(), *own], "loss")
    )


def evals_found(evals: Evals | None) -> str:
    if evals is None:
        return (
            "<p class=note>Give --evals=PATH, a copy of evals/ of the repository "
            "EleutherAI/pythia, to test the published perplexities here as well.</p>"
        )
    kept = {m: rows for m, rows in evals.items() if any(LOSSES[0] in row for row in rows)}
    return (
        "<p>The same test on LAMBADA's perplexity, as EleutherAI published it for the suite (v1) "
        "and for an earlier suite of the same shapes (v0). That one was trained differently and "
        "does not saturate.</p>"
        + _verdicts([loss_series(model, rows) for model, rows in kept.items()], "log perplexity")
    )


def _verdicts(judged: Sequence[saturation.LossSeries], unit: str) -> str:
    rows = []
    for series in judged:
        found = saturation.detect_saturation(series)
        rows.append(
            [
                *(series.name, f"{found.best_step:,}", f"{found.best_loss:.3f}"),
                *(f"{found.final_loss:.3f}", f"{found.relative:.2%}"),
                _chance(found.p_end),
                found.verdict or "too few checkpoints",
                _steps(_onset_of_loss(series, found)),
            ]
        )
    headings = ["model", "best step", f"minimum {unit}", "at the end", "above", "p of the end"]
    return table([*headings, "verdict", "rise begins (about 90 %)"], rows)


def law_found(law: ScalingLaw) -> str:
    rows = [["published", "–", f"{LAW.A}", f"{LAW.alpha}", *_gaps(LAW)]]
    for name, step, fixed, delta in (
        ("Huber of logarithms", DIGITISED_STEP, HOFFMANN, law.delta),
        ("least squares of logarithms", DIGITISED_STEP, HOFFMANN, math.inf),
        ("Huber of logarithms", LAST_STEP, HOFFMANN, law.delta),
        ("least squares of logarithms", LAST_STEP, HOFFMANN, math.inf),
        ("Huber, B, β, E of Besiroglu et al.", DIGITISED_STEP, _BESIROGLU, law.delta),
    ):
        found = fit(paper_values.final_points(FITTED, step), fixed=fixed, delta=delta)
        rows.append([name, f"{step:,}", f"{found.A:.1f}", f"{found.alpha:.4f}", *_gaps(found)])
    return (
        "<p>Constants refitted to the six large models, and the gaps of the four small ones. The "
        "paper does not state the step of the last checkpoint or the loss function of the fit, so "
        "both vary here, and so does the source of B, β and E.</p>"
        + table(["fit", "last step taken", "A", "α", "mean gap, last", "mean gap, best"], rows)
    )


def _gaps(law: ScalingLaw) -> list[str]:
    both = (paper_values.final_points(SMALL), paper_values.best_points())
    return [f"{law.relative_gap(points).mean():.1%}" for points in both]


def table_1_found(evals: Evals | None) -> str:
    columns = ([str(value) for value in TABLE_1[name]] for name in TABLE_1)
    printed = table([*TABLE_1], zip(*columns, strict=True)) + (
        "<p>In the row of the last checkpoint LAMBADA's two numbers are swapped: the published "
        "evaluation of step 143,000 has perplexity 38.06 and accuracy 32.8 %.</p>"
    )
    models = [m for m in evals or {} if m.endswith("pythia-160m") and "v0" not in m]
    if evals is None or not models:
        return printed
    rows = evals[models[0]]
    keys = ("lambada_openai/ppl", "lambada_openai/acc", "sciq/acc", "arc_easy/acc")
    best = min((row for row in rows if keys[0] in row), key=lambda row: row[keys[0]])
    shown = [
        [f"{int(row['step']):,}", *(f"{row[key]:.4g}" if key in row else "–" for key in keys)]
        for row in (best, rows[-1])
    ]
    note = "<p>Published evaluations, at the step of minimum perplexity and at the last:</p>"
    return printed + note + table(["step", *keys], shown)


def figure_3_found() -> str:
    rows = [
        [
            *(model, f"{v['min']:.1f}", f"{1000 * v['min_step_k']:,}"),
            *(f"{v['last']:.1f}", f"{v['last'] / v['min'] - 1:.1%}"),
        ]
        for model, v in digitised()["fig3_wikitext_word_ppl"].items()
    ]
    return table(["model", "minimum perplexity", "at step", "at the end", "above"], rows)


def onsets_found() -> str:
    """Compares the steps at which the loss and the singular entropy begin to rise."""
    rows = []
    losses = {
        model: _onset_of_loss(series, saturation.detect_saturation(series))
        for model, series in paper_values.figure_1a().items()
    }
    for model, curve in digitised()["fig5_singular_entropy"].items():
        values = list(curve.values())
        entropy = detect_onset(1000.0 * np.array([int(step) for step in curve]), np.array(values))
        cap = math.log(PYTHIA[model.lower()][1])
        rows.append(
            [
                *(model, f"{min(values):.2f}", f"{values[-1]:.2f}", f"{cap:.2f}"),
                *(_steps(entropy), _steps(losses.get(model))),
            ]
        )
    headings = ["model", "minimum", "last", "ln D", "entropy begins to rise (about 90 %)"]
    return table([*headings, "loss begins to rise (about 90 %)"], rows)


def _onset_of_loss(series: saturation.LossSeries, found: saturation.Saturation) -> Onset | None:
    """Returns the step at which a loss begins to rise, if the test finds that it does."""
    if found.verdict in (None, "does not saturate"):
        return None
    late = saturation.late_part(series.steps)
    return detect_onset(series.steps[late], series.loss[late])


def rank_found() -> str:
    rows = []
    for model, curve in digitised()["fig6_loss"].items():
        ranks = np.array([int(r) for r in curve])
        found = fit_rank(ranks, np.array(list(curve.values())))
        full = curve[str(ranks[-1])]
        at_1000 = curve.get("1024", math.nan) - full
        rows.append(
            [
                *(model, f"{found.floor:.2f}", f"{found.exponent:.3f}", f"{found.residual:.3f}"),
                *(f"{curve['512'] - full:+.3f}", f"{at_1000:+.3f}"),
            ]
        )
    return (
        "<p>The curves have no knee at 1000: a power of r fits each to a few hundredths of a nat, "
        "up to the full rank.</p>"
        + table(["model", "L∞", "p", "largest residual", "gap at r = 512", "gap at r = 1024"], rows)
    )


def flat_found() -> str:
    kept = {p["r"]: 1 - p["W_error"] ** 2 for p in digitised()["fig8_pythia1b"]}
    return (
        f"<p>The head is nearly flat: its first 1,024 of 2,048 directions hold {kept[1024]:.0%} of "
        f"its squared norm, and the first 512 hold {kept[512]:.0%}. Equal directions would hold "
        "50 % and 25 %.</p>"
    )


def peak_rates_found() -> str:
    curves = digitised()["fig9_peak_lr"]
    ranks = sorted({rank for curve in curves.values() for rank in curve}, key=int)
    rows = [
        [rank, *(f"{curve[rank]:g}" if rank in curve else "–" for curve in curves.values())]
        for rank in ranks
    ]
    return table(["rank", *curves], rows)


def _steps(onset: Onset | None) -> str:
    """Returns a step and its interval, to three digits: change points are no more precise."""
    if onset is None:
        return "–"
    steps = (onset.step, onset.low, onset.high)
    best, low, high = (f"{float(f'{step:.3g}'):,.0f}" for step in steps)
    return f"{best} ({low} to {high})"


def _chance(p: float | None) -> str:
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
