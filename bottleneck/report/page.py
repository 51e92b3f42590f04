"""The report of some runs: one self-contained HTML page, and its figures as PNG and SVG files."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from bottleneck.drawing.html import (
    SORTING_SCRIPT,
    SORTING_STYLE,
    STYLE,
    listed,
    picture,
    table,
    text,
)
from bottleneck.drawing.style import NothingToShow
from bottleneck.frozen.figures import frozen_heads
from bottleneck.pretrained.series_audit import left_out_steps
from bottleneck.report import figures, gaps
from bottleneck.report.calibration import SLACK, calibration
from bottleneck.report.rank_law import rank_law
from bottleneck.report.saturation import saturation_figure
from bottleneck.report.summary import MEASURES, summary_table
from bottleneck.runs.folder import write_text
from bottleneck.runs.reading import Run
from bottleneck.sections import flatten
from bottleneck.terminal import count

_READ_OFF = (
    "Read off the figures of Godey et al. (2024), for runs of the width of one of their models and "
    "as far as these go."
)
_FEW_STEPS = 6  # are named one by one


@dataclass(frozen=True)
class Exhibit:
    """A figure of the report: `sentence` says what it shows and how to read it."""

    name: str  # of its files
    title: str
    sentence: str
    draw: Callable[..., Figure]  # of runs; raises NothingToShow
    of_paper: str = ""  # what is added where the paper's curves are asked for, if it has such ones


EXHIBITS = (
    Exhibit(
        "loss",
        "Loss against training tokens",
        "Cross-entropy on the training batches (thin) and on the same held-out tokens each time "
        "(thick, bars of one standard error); the dashed line is the entropy of single tokens in "
        "the corpus, and a model below it uses the context.",
        figures.loss,
        "Broad and pale: Pythia on 50,000 tokens of the Pile, figure 1a.",
    ),
    Exhibit(
        "saturation",
        "Saturation: does the loss end above its own earlier level?",
        "Held-out loss above its least, without the first tenth of the steps. A run saturates if "
        "its last quarter lies above an earlier quarter by more than noise would have it once in "
        "twenty (p: how often noise does). The bar at the end is the 95 % interval, over "
        "documents, of the last loss over the least. A rise begins where a broken line breaks; "
        "that of the loss is shown where there is one.",
        saturation_figure,
    ),
    Exhibit(
        "loss_by_rank",
        "Final held-out loss against the rank of the head",
        "Each point is a finished run, with one standard error, and a number beside it is its gap "
        "to the full-rank run of the same experiment; where the curve is flat, rank costs nothing.",
        figures.loss_by_rank,
    ),
    Exhibit(
        "rank_law",
        "A law of the loss against the rank of the head",
        "Left: final held-out losses of runs that differ in the rank of their heads alone, one "
        "colour a width, and L∞ + c·R^−p fitted to them by least squares. Right: the same less "
        "L∞, where the law is a straight line of slope −p. Points that bend away from it say that "
        "the law does not hold there.",
        rank_law,
    ),
    Exhibit(
        "calibration",
        "Calibration: measured losses on a language whose rank is known",
        "Final held-out losses (dots, bars of one standard error) beside what needs no training to "
        "be known: the entropy rate, below which no model can be (dashed), the best loss that any "
        "head of rank R can have (line), and the true rank ρ, from which on the two are one "
        "(dotted). The estimated rank is the least from which on every loss is within "
        f"{SLACK:g} nats and two standard errors of the entropy rate.",
        calibration,
    ),
    Exhibit(
        "gap_by_rank",
        "Gap against the rank that a trained head is cut to",
        "How much the held-out loss rises when the trained head W is replaced by its best rank-r "
        "approximation, of W itself (left) and weighted by C, the second moment of the hidden "
        "states (right). Bars are one standard error; a hollow triangle is an upper limit, two "
        "standard errors up, where the gap cannot be told from zero.",
        figures.gap_by_rank,
    ),
    Exhibit(
        "gap_by_w_error",
        "Gap against W-error",
        "Every truncation of every head at its last probe: what it costs against the share of the "
        "head's norm that it cuts off, √(Σσᵢ² beyond r / Σσᵢ²). On one line, the norm cut off says "
        "all; where the curves part, the heads differ in what those directions were for. Gaps "
        "within two standard errors of zero are left out.",
        gaps.gap_by_w_error,
    ),
    Exhibit(
        "theory",
        "Theory against measurement",
        "The gaps of the figure above beside the most that they can be (dashed) if W minimises the "
        "loss on these tokens, which a trained head nearly does. Left: √Σσᵢ² of what is cut off, "
        "as in theorem 5.3 of Godey et al. (2024), with its constant. Right: as the first-order "
        "term vanishes at a minimum, a quarter of Σσᵢ² bounds the gap once W is weighted by C. "
        "Crosses are the gap to second order in the change of the logits, Δ: the mean over tokens "
        "of E_p[Δ] − Δ_target + ½·Var_p(Δ); where they leave the dots, a cut is no small change.",
        gaps.against_bounds,
    ),
    Exhibit(
        "anatomy",
        "What the gap is made of",
        "Left: how much of the gap falls on the rarest third of the text's tokens and on the most "
        "frequent third, by their counts in the training text; dotted is an even share, and "
        "below 0 % the cut makes those tokens more likely. Right: for how many tokens the "
        "head cut to rank r still finds the same next token most likely.",
        gaps.anatomy,
    ),
    Exhibit(
        "frozen_heads",
        "Heads of every rank on frozen features",
        "Heads trained on the run's hidden states, all else frozen: held-out loss (left) and how "
        "often the likeliest token is right (middle) against the head's rank, and the loss against "
        "the share of its norm that the run's own head loses at that rank (right). Lines are "
        "L∞ + c·r^−p; dotted is the run's own head, cut and not trained; dashed is the best head "
        "of full rank, a convex problem, stopped where its held-out loss was least.",
        frozen_heads,
    ),
    Exhibit(
        "spectrum",
        "Singular values of the head over training",
        "The colour is σᵢ/σ₀, the i-th singular value over the largest, as training goes from left "
        "to right: bright all the way down is a flat spectrum, and where a column turns dark a few "
        "directions have taken over.",
        figures.spectrum,
        "Dots, in the same colours: Pythia, figure 4; one that can hardly be seen agrees.",
    ),
    Exhibit(
        "singular_entropy",
        "Singular entropy of the head over training",
        "How far the spectrum is from flat: 0 when all singular values are equal, ln D when only "
        "one is left. Dotted: the least that a head of that rank can have, ln(D/R). Centring takes "
        "the mean row out of W, which no softmax can see.",
        figures.singular_entropy,
        "Broad and pale: Pythia, figure 5.",
    ),
    Exhibit(
        "gradient_survival",
        "How much of the gradient survives the head",
        "The loss's gradient by the logits has V components, of which the hidden states are told "
        "only those in the column space of W: the share of its norm that is left, over training. "
        "Dotted: √(R/V), what a random subspace of that dimension would keep.",
        gaps.gradient_survival,
    ),
    Exhibit(
        "anisotropy",
        "Anisotropy of the hidden states",
        "Mean cosine similarity between hidden states of different tokens, by layer at the last "
        "probe (left) and of the last layer over training (right): near 0 they point everywhere, "
        "near 1 all the same way.",
        figures.anisotropy,
        "Broad and pale: Pythia, figure 3.",
    ),
)


def write_report(
    runs: Sequence[Run], folder: Path, *, overlay: figures.Overlay | None = None
) -> Path:
    """The path of the page that it writes: `report.html` in the folder, beside `figures/`.

    The page needs nothing beside it and no network: its figures are inside it.

    Args:
        overlay: the curves of Godey et al. 2024, to lay under those of runs of the same width.
    """
    images = folder / "figures"
    images.mkdir(parents=True, exist_ok=True)
    shown, left_out = [], []
    for exhibit in EXHIBITS:
        # What an earlier report left here must not be taken for a figure of this one.
        png, svg = (images / f"{exhibit.name}.{suffix}" for suffix in ("png", "svg"))
        png.unlink(missing_ok=True)
        svg.unlink(missing_ok=True)
        try:
            sentence = exhibit.sentence
            if overlay is not None and exhibit.of_paper:
                figure = exhibit.draw(runs, overlay=overlay)
                sentence += f" {exhibit.of_paper} {_READ_OFF}"
            else:
                figure = exhibit.draw(runs)
        except NothingToShow as reason:
            left_out.append(
                f"<p class=note>Left out: {text(exhibit.title)}, as {text(reason)}.</p>"
            )
            continue
        shown.append(
            f"<figure id={exhibit.name}><h2>{text(exhibit.title)}</h2>"
            f"{picture(figure, exhibit.title, images, exhibit.name)}"
            f"<figcaption>{text(sentence)}</figcaption></figure>"
        )
    page = folder / "report.html"
    write_text(
        page,
        _PAGE.format(
            title=text(_title(runs)),
            style=STYLE + SORTING_STYLE,
            script=SORTING_SCRIPT,
            opening=_opening(runs),
            summary=_summary(runs),
            figures="\n".join(shown + left_out),
            differences=_differences(runs),
            origin=_origin(runs),
            definitions=_definitions(),
            config=_shared_config(runs),
        ),
    )
    return page


def _title(runs: Sequence[Run]) -> str:
    return f"Run {runs[0].name}" if len(runs) == 1 else f"{len(runs)} runs"


def _opening(runs: Sequence[Run]) -> str:
    """One line on what was trained, and one for each run that is not finished."""
    ranks = listed(sorted({run.head_rank for run in runs}))
    widths = listed(sorted({run.config.model.d_model for run in runs}))
    corpora = listed(sorted({run.config.data.corpus for run in runs}))
    verb = "measured" if any(run.series_of for run in runs) else "trained"
    lines = [f"{_title(runs)}: head rank {ranks}, hidden width {widths}, {verb} on {corpora}."]
    for run in runs:
        if missing := left_out_steps(run.path):
            which = f"{len(missing)} steps between {missing[0]} and {missing[-1]}"
            if len(missing) <= _FEW_STEPS:
                which = f"step {listed(missing)}"
            lines.append(
                f"Left out of {run.name}: {which}, with the weights of other steps or with none "
                "that can be read."
            )
        if not run.is_complete:
            done, planned = run.metrics["step"][-1], run.config.train.steps
            probes = "" if run.probe_steps else ", and has not been probed"
            lines.append(
                f"{run.name} is unfinished: it stands at step {done} of {planned}{probes}."
            )
    return "".join(f"<p>{text(line)}</p>" for line in lines)


def _summary(runs: Sequence[Run]) -> str:
    rows = summary_table(runs).iter_rows(named=True)
    return table(
        [measure.heading.replace("\n", " ") for measure in MEASURES],
        [[measure.show(row) for measure in MEASURES] for row in rows],
    )


def _definitions() -> str:
    items = (
        f"<dt>{text(measure.heading)}</dt><dd>{text(measure.definition)}</dd>"
        for measure in MEASURES
    )
    return f"<dl>{''.join(items)}</dl>"


def _differences(runs: Sequence[Run]) -> str:
    """The config fields in which the runs differ, a row per run; nothing where there is one run."""
    if len(runs) == 1:
        return ""
    differing = _differing_fields(runs)
    rows = [[run.name, *(str(flatten(run.config)[key]) for key in differing)] for run in runs]
    answer = table(["run", *differing], rows) if differing else "<p>They have one config.</p>"
    return f"<section><h2>How the runs differ</h2>{answer}</section>"


def _differing_fields(runs: Sequence[Run]) -> list[str]:
    configs = [flatten(run.config) for run in runs]
    return [key for key in configs[0] if len({str(config[key]) for config in configs}) > 1]


def _shared_config(runs: Sequence[Run]) -> str:
    differing = _differing_fields(runs)
    fields = flatten(runs[0].config).items()
    return table(
        ["field", "value"], [[key, str(value)] for key, value in fields if key not in differing]
    )


def _origin(runs: Sequence[Run]) -> str:
    """Corpus, versions, mesh and revision, with the names of the runs that share them."""

    def describe(run: Run) -> tuple[str, ...]:
        corpus = run.corpus
        of_training = f"{count(corpus.train_tokens)} tokens to train on, "
        if run.series_of:
            of_training = ""
        return (
            f"checkpoints of {run.series_of}" if run.series_of else "trained here",
            f"{run.config.data.corpus}: {of_training}{count(corpus.heldout_tokens)} held out; "
            f"unigram entropy "
            f"{corpus.unigram_entropy:.3f} nats/token; {corpus.bytes_per_token:.2f} bytes/token",
            ", ".join(f"{name} {version}" for name, version in run.versions.items()),
            " × ".join(f"{axis} {size}" for axis, size in run.mesh.items()),
            (run.git_revision or "unknown")[:12],
        )

    ordered = sorted(runs, key=describe)
    groups = itertools.groupby(ordered, key=describe)
    return table(
        ["runs", "weights", "corpus", "versions", "mesh (devices)", "git revision"],
        [[listed(run.name for run in group), *described] for described, group in groups],
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: what the rank of the head costs</title>
<style>{style}</style>
</head>
<body>
<h1>What the rank of the head costs</h1>
{opening}
<div class=summary>{summary}</div>
{figures}
{differences}
<section><h2>Where the numbers come from</h2>{origin}</section>
<section><h2>What each number means</h2>{definitions}</section>
<section><details><summary>Config that all runs share</summary>{config}</details></section>
<script>{script}</script>
</body>
</html>
"""
