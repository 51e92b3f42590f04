"""One page that walks through the paper: what each figure shows, what it gives here, what to run.

A section is a figure or table of Godey, de la Clergerie and Sagot 2024. What can be computed from
the figures and from published evaluations is computed anew each time; for the rest stands the
command for a machine with network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from bottleneck.drawing.html import STYLE, picture, table, text
from bottleneck.laws.scaling_law import fit
from bottleneck.paper import figures as paper_figures
from bottleneck.paper import findings as found
from bottleneck.paper import values as paper_values
from bottleneck.paper.curves import SPECTRA, digitised
from bottleneck.paper.findings import Evals
from bottleneck.paper.values import FITTED, HOFFMANN
from bottleneck.runs.folder import write_text
from bottleneck.runs.reading import Run

_PILE = "--config.data.paths=~/pile/*.jsonl.zst --config.data.heldout_fraction=0.1"
_SERIES = (
    "python -m bottleneck series EleutherAI/pythia-160m --workdir=runs/pythia-160m "
    f"--config=configs/pythia.py:160m {_PILE} --config.data.tokenizer=None "
    "--config.compute.dtype=float32 "
    "--config.probe.tokens=51200 --config.compute.accumulation_steps=256"
)


@dataclass(frozen=True)
class Section:
    """A figure or table of the paper: what it showed, what is found here, how to make it oneself.

    found: paragraphs and tables, as HTML; draw: None where there is nothing to draw.
    """

    name: str  # of its files
    title: str
    shown: str
    found: Sequence[str]
    commands: Sequence[str]
    draw: Callable[[], Figure] | None = None


def write_paper(folder: Path, evals: Evals | None = None, runs: Sequence[Run] = ()) -> Path:
    """The path of the page that it writes: `paper.html` in the folder, beside `figures/`.

    Args:
        evals: published evaluations, as `read_evals` gives them.
        runs: drawn beside the paper's curves.
    """
    images = folder / "figures"
    images.mkdir(parents=True, exist_ok=True)
    parts = []
    for section in _sections(evals, runs):
        drawn = ""
        if section.draw is not None:
            drawn = (
                f"<figure>{picture(section.draw(), section.title, images, section.name)}</figure>"
            )
        commands = "\n".join(section.commands)
        parts.append(
            f"<section id={section.name}><h2>{text(section.title)}</h2>"
            f"<p>{text(section.shown)}</p>{drawn}{''.join(section.found)}"
            f"<pre><code>{text(commands)}</code></pre></section>"
        )
    page = folder / "paper.html"
    note = text(digitised()["note"])
    write_text(page, _PAGE.format(style=STYLE, note=note, sections="\n".join(parts)))
    return page


def _sections(evals: Evals | None, runs: Sequence[Run]) -> Iterator[Section]:
    law = fit(paper_values.final_points(FITTED), fixed=HOFFMANN)
    yield Section(
        "figure-1a",
        "Figure 1a: the loss of small models rises again",
        "Cross-entropy on 50,000 tokens of the Pile every 5,000 steps of five Pythia models. The "
        "text has models up to 410M saturate; the curve of 410M falls to its end.",
        [*found.saturation_found(runs), *found.evals_found(evals)],
        [_SERIES, "python -m bottleneck paper runs/pythia-160m"],
        lambda: paper_figures.figure_1a_drawn(runs),
    )
    yield Section(
        "figure-1b",
        "Figure 1b: small models end above the law of the large ones",
        "L = E + A/N^α + B/T^β with Hoffmann et al.'s B, β and E, and with A and α fitted to the "
        "models of 410M and more: A = 119.09, α = 0.246. By that law the last checkpoints of the "
        "four small models are 8 % too high on average, their best ones about 4 %. N is all "
        "parameters; compute is 6·N·T.",
        found.law_found(law),
        ["python -m bottleneck fit runs/pythia-* --fixed=B=410.7,beta=0.28,E=1.69 --fit_from=4e8"],
        lambda: paper_figures.figure_1b_drawn(law),
    )
    yield Section(
        "table-1",
        "Table 1: what saturation costs on tasks, Pythia-160M",
        "Zero-shot scores of the best and of the last checkpoint. Which step is best is not said.",
        [*found.table_1_found(evals)],
        [
            "python -m bottleneck import_hf EleutherAI/pythia-160m --revision step143000 "
            "--workdir=runs/pythia-160m",
            "python -m bottleneck evaluate runs/pythia-160m "
            "--tasks=lambada_openai,storycloze_2016,wikitext,sciq,arc_easy",
        ],
    )
    yield Section(
        "figure-2",
        "Figure 2: anisotropy by layer",
        "Mean cosine similarity of hidden states by layer, for GPT-2, OPT, Pythia and Gemma. Of "
        "the Pythia models only those that saturate are near 1 in the last layer.",
        [
            table(
                ["model", "last layer, about"],
                [[model, f"{value:.2f}"] for model, value in paper_values.FIGURE_2.items()],
            )
        ],
        [
            f"python -m bottleneck features --transformers openai-community/gpt2 {_PILE} "
            "--config=configs/gpt2.py:small --output=features/gpt2",
            _SERIES,
            "python -m bottleneck paper runs/pythia-160m",
        ],
    )
    yield Section(
        "figure-3",
        "Figure 3: perplexity and anisotropy over training",
        "WikiText perplexity by word of the Harness, every 1,000 steps, coloured by the anisotropy "
        "of the last layer, which rises where perplexity does.",
        found.figure_3_found(),
        [_SERIES, "python -m bottleneck evaluate runs/pythia-160m --tasks=wikitext"],
        lambda: paper_figures.figure_3_drawn(runs),
    )
    yield Section(
        "figure-4",
        "Figure 4: singular values of the head over training",
        "σᵢ/σ₀ of the first 100 singular values, which flatten and then turn into a spike.",
        [
            table(
                ["model", "step", "i = 1", "2", "10", "50", "100"],
                [
                    [model, f"{step:,}", *(f"{ratio:.3f}" for ratio in ratios)]
                    for model, spectra in SPECTRA.items()
                    for step, ratios in spectra.items()
                ],
            )
        ],
        [_SERIES, "python -m bottleneck paper runs/pythia-160m"],
    )
    yield Section(
        "figure-5",
        "Figure 5: singular entropy over training",
        "KL(p‖u) of the head's spectrum. Only p ∝ σ² gives the values of the figure; with p ∝ σ "
        "they would be a fourth to an eighth of that. It cannot exceed ln D (dotted), so widths "
        "are not to be compared as they stand.",
        found.onsets_found(),
        [_SERIES, "python -m bottleneck paper runs/pythia-160m"],
        lambda: paper_figures.figure_5_drawn(runs),
    )
    yield Section(
        "figure-6",
        "Figure 6: heads of low rank on frozen representations",
        "Loss of heads W = A B trained on the hidden states of a finished model. The text sees the "
        "loss rise below a rank of 1000 (dotted).",
        found.rank_found(),
        [
            f"python -m bottleneck features --transformers EleutherAI/pythia-410m {_PILE} "
            "--config=configs/pythia.py:410m --output=features/410m",
            "python -m bottleneck frozen_heads features/410m",
        ],
        paper_figures.figure_6_drawn,
    )
    yield Section(
        "figure-7",
        "Figure 7: the dimension of n-gram tables",
        "W-error of matrices of contexts × next tokens, for 5-grams of three corpora and two "
        "tokenizers: halved (dotted) with 1,000 to 2,000 dimensions, negligible after 10,000.",
        [
            "<p>From where its slope changes, each curve is of about 80,000 rows that nearly all "
            "have one next token, so that it follows from token frequencies alone. The command "
            "draws that null beside the measured curve.</p>"
        ],
        [
            "python -m bottleneck ngrams --config=configs/nano.py --output=runs/ngrams --n=5 "
            "--windows=100000 --paper"
        ],
        paper_figures.figure_7_drawn,
    )
    yield Section(
        "theory",
        "Lemma 5.1 and theorem 5.3: what cutting the rank can cost",
        "The loss of a head cut to rank d exceeds the least by O(√Σσᵢ²) of what is cut off.",
        [
            "<p>The first-order term printed in the proof of the lemma has a slip; what it should "
            "be is <code>bottleneck.report.bounds.first_order_change</code>. At a minimum that "
            "term vanishes, so a quarter of Σσᵢ² of the weighted head bounds the gap, for every "
            "rank. The report of any run draws both bounds beside the measured gap.</p>"
        ],
        ["make demo"],
    )
    yield Section(
        "figure-8",
        "Figure 8: loss against the W-error of the model's own head",
        "The heads of figure 6 for Pythia-1B, against what their rank leaves out of the head that "
        "the model was released with. The text sees the loss rise from a W-error of 0.6 on.",
        [found.flat_found()],
        [
            f"python -m bottleneck features --transformers EleutherAI/pythia-1b {_PILE} "
            "--config=configs/pythia.py:1b --output=features/1b",
            "python -m bottleneck frozen_heads features/1b",
        ],
        paper_figures.figure_8_drawn,
    )
    yield Section(
        "figure-9",
        "Figure 9: the learning rate of each rank",
        "Peak learning rates that the search of the appendix chose for figure 6.",
        [
            table(
                ["rank", *digitised()["fig9_peak_lr"]],
                found.by_rank(digitised()["fig9_peak_lr"]),
            )
        ],
        ["python -m bottleneck frozen_heads features/410m"],
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Why do small language models underperform? Figure by figure</title>
<style>{style}
pre {{ background: #f4f4f4; padding: .6rem .8rem; white-space: pre-wrap; font-size: .82rem; }}
</style>
</head>
<body>
<h1>“Why do small language models underperform?”, figure by figure</h1>
<p>Godey, de la Clergerie and Sagot 2024, arXiv 2404.07647. What each figure and table shows, what
comes out when its numbers are computed anew, and the command that makes it from the models.</p>
<p class=note>{note}</p>
{sections}
</body>
</html>
"""
