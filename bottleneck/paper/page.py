"""A page that walks through the paper: each figure, what its numbers give here, and a command.

Results are recomputed from the digitised figures and from published evaluations. The command makes
the figure from the models, and may need network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from bottleneck.drawing.html import page, picture, table, text
from bottleneck.laws.scaling_law import fit
from bottleneck.paper import figures as paper_figures
from bottleneck.paper import findings as found
from bottleneck.paper import values as paper_values
from bottleneck.paper.curves import SPECTRA, digitised
from bottleneck.paper.findings import Evals
from bottleneck.paper.values import FITTED, HOFFMANN
from bottleneck.runs.folder import write_text
from bottleneck.runs.reading import Run

_PILE = "--config.data.paths=~/pile/*.jsonl.zst --config.data.validation_fraction=0.1"
_SERIES = (
    "python -m bottleneck series EleutherAI/pythia-160m --workdir=runs/pythia-160m "
    f"--config=configs/pythia.py:160m {_PILE} --config.data.tokenizer=None "
    "--config.compute.dtype=float32 "
    "--config.probe.tokens=51200 --config.compute.accumulation_steps=256"
)
_SERIES_DRAWN = f"{_SERIES}\npython -m bottleneck paper runs/pythia-160m"

_TITLE = "Why do small language models underperform? Figure by figure"
_STYLE = """
pre { background: #f4f4f4; padding: .6rem .8rem; white-space: pre-wrap; font-size: .82rem; }
"""
_OPENING = """<h1>“Why do small language models underperform?”, figure by figure</h1>
<p>Godey, de la Clergerie and Sagot 2024, arXiv 2404.07647. Each figure and table: what it
shows, what its numbers give when recomputed, and the command that makes it from the models.</p>"""


@dataclass(frozen=True)
class PaperSection:
    """A figure or table of the paper: what it shows, what is found here, how to make it."""

    name: str  # of its files, without suffix
    title: str
    shown: str
    found: str  # paragraphs and tables, as HTML
    commands: str  # one a line
    draw: Callable[[], Figure] | None = None


def write_paper(folder: Path, evals: Evals | None = None, runs: Sequence[Run] = ()) -> Path:
    """Writes `paper.html` and `figures/` into the folder; returns the path of the page.

    Args:
        evals: published evaluations, from `read_evals`.
        runs: runs to draw beside the paper's curves.
    """
    images = folder / "figures"
    images.mkdir(parents=True, exist_ok=True)
    parts = [_OPENING, f"<p class=note>{text(digitised()['note'])}</p>"]
    for section in _sections(evals, runs):
        drawn = ""
        if section.draw is not None:
            image = picture(section.draw(), section.title, images, section.name)
            drawn = f"<figure>{image}</figure>"
        parts.append(
            f"<section id={section.name}><h2>{text(section.title)}</h2>"
            f"<p>{text(section.shown)}</p>{drawn}{section.found}"
            f"<pre><code>{text(section.commands)}</code></pre></section>"
        )
    target = folder / "paper.html"
    write_text(target, page(_TITLE, "\n".join(parts), _STYLE))
    return target


def _sections(evals: Evals | None, runs: Sequence[Run]) -> Iterator[PaperSection]:
    law = fit(paper_values.final_points(FITTED), fixed=HOFFMANN)
    yield PaperSection(
        "figure-1a",
        "Figure 1a: the loss of small models rises again",
        "Cross-entropy of five Pythia models on 50,000 tokens of the Pile, every 5,000 steps. The "
        "text says that models up to 410M saturate; the curve of 410M falls to its end.",
        found.saturation_found(runs) + found.evals_found(evals),
        _SERIES_DRAWN,
        lambda: paper_figures.figure_1a_drawn(runs),
    )
    yield PaperSection(
        "figure-1b",
        "Figure 1b: small models end above the law of the large ones",
        "L = E + A/N^α + B/T^β with Hoffmann et al.'s B, β and E, and with A and α fitted to the "
        "models of 410M and more: A = 119.09, α = 0.246. The last checkpoints of the four small "
        "models are 8 % above that law on average, their best ones about 4 %. N counts all "
        "parameters; compute is 6·N·T.",
        found.law_found(law),
        "python -m bottleneck fit runs/pythia-* --fixed=B=410.7,beta=0.28,E=1.69 --fit_from=4e8",
        lambda: paper_figures.figure_1b_drawn(law),
    )
    yield PaperSection(
        "table-1",
        "Table 1: what saturation costs on tasks, Pythia-160M",
        "Zero-shot scores of the best and of the last checkpoint. The paper does not say which "
        "step is best.",
        found.table_1_found(evals),
        "python -m bottleneck import_hf EleutherAI/pythia-160m --revision step143000 "
        "--workdir=runs/pythia-160m\n"
        "python -m bottleneck evaluate runs/pythia-160m "
        "--tasks=lambada_openai,storycloze_2016,wikitext,sciq,arc_easy",
    )
    yield PaperSection(
        "figure-2",
        "Figure 2: anisotropy by layer",
        "Mean cosine similarity of hidden states by layer, for GPT-2, OPT, Pythia and Gemma. Among "
        "the Pythia models, only those that saturate are near 1 in the last layer.",
        table(
            ["model", "last layer, about"],
            [[model, f"{value:.2f}"] for model, value in paper_values.FIGURE_2.items()],
        ),
        f"python -m bottleneck features --transformers openai-community/gpt2 {_PILE} "
        f"--config=configs/gpt2.py:small --output=features/gpt2\n{_SERIES_DRAWN}",
    )
    yield PaperSection(
        "figure-3",
        "Figure 3: perplexity and anisotropy over training",
        "The Harness's word perplexity on WikiText, every 1,000 steps, coloured by the anisotropy "
        "of the last layer. Both rise at the same time.",
        found.figure_3_found(),
        f"{_SERIES}\npython -m bottleneck evaluate runs/pythia-160m --tasks=wikitext",
        lambda: paper_figures.figure_3_drawn(runs),
    )
    yield PaperSection(
        "figure-4",
        "Figure 4: singular values of the head over training",
        "σᵢ/σ₀ of the first 100 singular values: the spectrum flattens, then one value dominates.",
        table(
            ["model", "step", "i = 1", "2", "10", "50", "100"],
            [
                [model, f"{step:,}", *(f"{ratio:.3f}" for ratio in ratios)]
                for model, spectra in SPECTRA.items()
                for step, ratios in spectra.items()
            ],
        ),
        _SERIES_DRAWN,
    )
    yield PaperSection(
        "figure-5",
        "Figure 5: singular entropy over training",
        "KL(p‖u) of the head's spectrum. Only p ∝ σ² gives the values of the figure; p ∝ σ would "
        "give a fourth to an eighth of them. The maximum is ln D (dotted), so values of different "
        "widths are not comparable.",
        found.onsets_found(),
        _SERIES_DRAWN,
        lambda: paper_figures.figure_5_drawn(runs),
    )
    yield PaperSection(
        "figure-6",
        "Figure 6: heads of low rank on frozen representations",
        "Loss of heads W = A B trained on the hidden states of a finished model. The text says "
        "that the loss rises below a rank of 1000 (dotted).",
        found.rank_found(),
        f"python -m bottleneck features --transformers EleutherAI/pythia-410m {_PILE} "
        "--config=configs/pythia.py:410m --output=features/410m\n"
        "python -m bottleneck frozen_heads features/410m",
        paper_figures.figure_6_drawn,
    )
    yield PaperSection(
        "figure-7",
        "Figure 7: the dimension of n-gram tables",
        "W-error of matrices of contexts × next tokens, for 5-grams of three corpora and two "
        "tokenizers: halved (dotted) with 1,000 to 2,000 dimensions, negligible after 10,000.",
        "<p>Judging by the change of its slope, each curve has about 80,000 rows, and nearly "
        "every row has one next token. So it follows from token frequencies alone. The command "
        "draws that null beside the measured curve.</p>",
        "python -m bottleneck ngrams --config=configs/nano.py --output=runs/ngrams --n=5 "
        "--windows=100000 --paper",
        paper_figures.figure_7_drawn,
    )
    yield PaperSection(
        "theory",
        "Lemma 5.1 and theorem 5.3: the possible cost of truncating the head",
        "The loss of a head truncated to rank d exceeds the minimum by O(√Σσᵢ²) of the values cut.",
        "<p>The first-order term in the proof of the lemma has a slip: with Δ the change of the "
        "logits it is the mean of E_p[Δ] − Δ[y]. It vanishes at a minimum, so a quarter of Σσᵢ² of "
        "the weighted head bounds the gap at every rank. The report of a run draws both bounds "
        "beside the measured gap.</p>",
        "make demo",
    )
    yield PaperSection(
        "figure-8",
        "Figure 8: loss against the W-error of the model's own head",
        "The heads of figure 6 for Pythia-1B, against the W-error of the released head at the same "
        "rank. The text says that the loss rises from a W-error of 0.6.",
        found.flat_found(),
        f"python -m bottleneck features --transformers EleutherAI/pythia-1b {_PILE} "
        "--config=configs/pythia.py:1b --output=features/1b\n"
        "python -m bottleneck frozen_heads features/1b",
        paper_figures.figure_8_drawn,
    )
    yield PaperSection(
        "figure-9",
        "Figure 9: the learning rate of each rank",
        "Peak learning rates that the appendix's search chose for figure 6.",
        found.peak_rates_found(),
        "python -m bottleneck frozen_heads features/410m",
    )
