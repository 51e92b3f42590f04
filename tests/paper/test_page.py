"""The paper's own numbers, and the page that walks through them."""

import re

import numpy as np
import pytest

from bottleneck import runs
from bottleneck.__main__ import verbs
from bottleneck.laws.rank import fit_rank
from bottleneck.laws.scaling_law import fit
from bottleneck.paper import values as paper_values
from bottleneck.paper.curves import digitised
from bottleneck.paper.findings import evals_found
from bottleneck.paper.page import write_paper
from bottleneck.paper.values import (
    FITTED,
    HOFFMANN,
    LAST_STEP,
    LAW,
    SMALL,
    best_points,
    final_points,
)


def test_published_law_gives_the_published_gaps():
    final, best = LAW.relative_gap(final_points(SMALL)), LAW.relative_gap(best_points())
    assert 100 * final.mean() == pytest.approx(7.9, abs=0.1)
    assert 100 * best.mean() == pytest.approx(4.1, abs=0.1)
    assert 100 * LAW.relative_gap(final_points(SMALL, LAST_STEP)).mean() == pytest.approx(
        7.9, abs=0.1
    )


def test_gaps_mean_nothing_where_the_embedding_is_not_counted():
    points = final_points(SMALL)
    inside = np.array([1_189_888, 4_739_072, 18_915_328, 85_056_000])
    elsewhere = LAW.predict(inside, points.n_tokens)
    assert np.mean(points.loss / elsewhere - 1) < -0.1


def test_refitted_constants_bracket_the_published_ones():
    """Which loss was fitted, and at which last step, is not stated: Huber, or least squares."""
    found = []
    for step in (paper_values.DIGITISED_STEP, LAST_STEP):
        for delta in (1e-3, np.inf):
            points = final_points(FITTED, step)
            law = fit(points, fixed=HOFFMANN, delta=delta)
            found.append((law.A, law.alpha))
    # Brackets to the digits to which they are known.
    assert all(114 <= round(A) <= 123 and 0.2445 <= round(alpha, 3) <= 0.248 for A, alpha in found)
    assert min(A for A, _ in found) < 119.09 < max(A for A, _ in found)
    assert min(alpha for _, alpha in found) < 0.246 < max(alpha for _, alpha in found)


def test_sizes_are_those_of_the_released_models():
    released = {"14M": 14_067_712, "160M": 162_322_944, "6.9B": 6_857_302_016}
    assert {name: paper_values.n_params(name) for name in released} == released


def test_figure_6_is_a_power_of_the_rank():
    worst = {"pythia-410m": (0.615, 0.021), "pythia-1b": (0.544, 0.04), "llama-7b": (0.630, 0.021)}
    for model, (power, misfit) in worst.items():
        curve = digitised()["fig6_loss"][model]
        found = fit_rank(np.array([int(r) for r in curve]), np.array([*curve.values()]))
        assert found.exponent == pytest.approx(power, abs=5e-4) and found.residual < misfit


@pytest.fixture(scope="module")
def page(tmp_path_factory, write_run):
    own = runs.load(write_run(tmp_path_factory.mktemp("runs") / "mine"))
    evals = {
        "pythia-v1/pythia-160m": [
            {"step": 10_000 * i, "lambada_openai/ppl": 30.0 + abs(i - 4), "sciq/acc": 0.7}
            for i in range(1, 12)
        ]
    }
    return write_paper(tmp_path_factory.mktemp("paper"), evals, [own])


def test_every_figure_and_table_of_the_paper_has_its_section(page):
    written = page.read_text()
    titles = re.findall(r"<h2>(.*?):", written)
    assert titles == [
        *("Figure 1a", "Figure 1b", "Table 1"),
        *(f"Figure {n}" for n in (2, 3, 4, 5, 6, 7)),
        *("Lemma 5.1 and theorem 5.3", "Figure 8", "Figure 9"),
    ]
    sections = written.split("<section id=")[1:]
    assert all("<pre><code>" in section for section in sections)
    assert written.count("<figure>") == 7
    for name in ("1a", "1b", "3", "5", "6", "7", "8"):
        png = page.parent / "figures" / f"figure-{name}.png"
        assert png.read_bytes().startswith(b"\x89PNG")
    assert "http" not in written.replace("http://www.w3.org", "")


def test_commands_are_verbs_or_targets_of_make(page):
    commands = re.findall(r"<pre><code>(.*?)</code></pre>", page.read_text(), flags=re.DOTALL)
    lines = [line for block in commands for line in block.splitlines()]
    named = {line.split()[3] for line in lines if line.startswith("python -m bottleneck ")}
    known = {"import_hf", "series", "features", "frozen_heads", "ngrams", "evaluate", *verbs()}
    assert named <= known
    assert [line for line in lines if not line.startswith("python -m bottleneck ")] == ["make demo"]


def test_page_says_what_comes_out(page):
    written = page.read_text()
    assert re.search(r"<td>published</td>.*?<td>7\.9%</td><td>4\.1%</td>", written)
    for row in (
        r"Pythia 14M</td>.*?rises and recovers",
        r"Pythia 160M</td>.*?saturates",
        r"Pythia 410M</td>.*?does not saturate",
        r"pythia-v1/pythia-160m</td>",
        r"<td>mine</td>",
    ):
        assert re.search(row, written)


def test_page_says_how_evaluations_are_to_be_had():
    assert "--evals=PATH" in "".join(evals_found(None))
