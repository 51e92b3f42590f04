import itertools
import json
import math

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex

from bottleneck.drawing.style import NothingToShow, styles
from bottleneck.report import figures
from bottleneck.report.exhibits import EXHIBITS
from bottleneck.runs import load, load_all

# Every label that an axis may have: a quantity and its unit, or a count or ratio that has none.
LABELS = {
    "loss": ({"training tokens"}, {"loss (nats/token)"}),
    "saturation": ({"step"}, {"validation loss above its minimum"}),
    "loss_by_rank": ({"rank R of the head"}, {"validation loss (nats/token)"}),
    "calibration": ({"rank R of the head"}, {"validation loss (nats/token)"}),
    "gap_by_rank": ({"rank r kept"}, {"gap to the untruncated head (nats/token)"}),
    "theory": ({"rank r kept"}, {"gap to the untruncated head (nats/token)"}),
    "rank_law": (
        {"rank R of the head"},
        {"validation loss (nats/token)", "loss − L∞ (nats/token)"},
    ),
    "gap_by_w_error": (
        {"W-error: fraction of the head's norm removed"},
        {"gap to the untruncated head (nats/token)"},
    ),
    "frozen_heads": (
        {"rank r of the head", "W-error of the model's own head at r"},
        {"validation loss (nats/token)", "next token right (%)"},
    ),
    "anatomy": ({"rank r kept"}, {"fraction of the gap", "tokens"}),
    "gradient_survival": ({"step"}, {"fraction of the gradient's norm"}),
    "spectrum": ({"step"}, {"index i of σᵢ", "σᵢ / σ₀"}),
    "singular_entropy": ({"step"}, {"KL(p‖u) (nats)"}),
    "anisotropy": (
        {"layer (0: embedding, 4: after the final norm)", "step"},
        {"mean cosine similarity"},
    ),
}


@pytest.fixture
def three_ranks(make_run):
    return [
        load(make_run(f"rank{rank or 64}", d_model=64, head_rank=rank, language_rank=4))
        for rank in (4, 16, None)
    ]


@pytest.fixture
def with_everything(make_run, write_frozen_heads):
    """Runs that every exhibit has something to show of."""
    folders = [
        make_run(f"rank{rank or 64}", d_model=64, head_rank=rank, language_rank=4)
        for rank in (4, 8, 16, None)
    ]
    write_frozen_heads(folders[0] / "features" / "frozen_heads")
    return [load(folder) for folder in folders]


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda exhibit: exhibit.name)
def test_every_figure_labels_its_axes_with_units(with_everything, exhibit):
    x_labels, y_labels = LABELS[exhibit.name]
    drawn = exhibit.draw(with_everything).axes
    assert {axes.get_xlabel() for axes in drawn} - {""} == x_labels
    assert {axes.get_ylabel() for axes in drawn} - {""} == y_labels
    for axes in drawn:
        shares_y = any(axes.get_shared_y_axes().joined(axes, other) for other in drawn[:1])
        row_is_labelled = axes.get_subplotspec() and not axes.get_subplotspec().is_first_col()
        assert axes.get_ylabel() or shares_y or row_is_labelled


def test_every_figure_has_a_sentence():
    assert all(exhibit.sentence.endswith(".") and exhibit.title for exhibit in EXHIBITS)
    assert {exhibit.name for exhibit in EXHIBITS} == LABELS.keys()


def test_heat_map_shows_each_singular_value_over_the_largest(three_ranks):
    figure = figures.spectrum(three_ranks)
    for axes, run in zip(figure.axes, three_ranks, strict=False):
        (mesh,) = axes.collections
        shown = np.ma.filled(mesh.get_array(), np.nan)
        for column, step in enumerate(range(0, 401, 50)):
            with np.load(run.path / "probes" / f"{step:08d}.npz") as arrays:
                sigma = arrays["singular_values"]
            last = run.head_rank - 1
            np.testing.assert_allclose(
                shown[:last, column], sigma[1 : last + 1] / sigma[0], rtol=1e-12
            )
            assert np.isnan(shown[last:, column]).all()
        assert (mesh.norm.vmax, mesh.cmap.name) == (1.0, figure.axes[0].collections[0].cmap.name)


def test_heat_map_of_a_head_of_rank_one_is_drawn(make_run):
    assert figures.spectrum([load(make_run(head_rank=1))]).axes


def test_a_run_has_its_own_colour_and_keeps_it(three_ranks):
    look = styles(three_ranks)
    assert len({style.colour for style in look.values()}) == 3
    wanted = [style.colour for style in look.values()]
    for draw in (figures.singular_entropy, figures.anisotropy):
        lines = [line for line in draw(three_ranks).axes[0].lines if line.get_linestyle() != ":"]
        assert [to_hex(line.get_color()) for line in lines] == wanted


def test_runs_of_one_shape_have_different_colours(make_run):
    runs = [load(make_run(f"seed{seed}", seed=seed, steps=50)) for seed in range(9)]
    assert len({style.colour for style in styles(runs).values()}) == 9


def test_colours_darken_with_the_rank_and_widths_differ_in_line_and_marker(make_run, tmp_path):
    for width, rank in itertools.product((32, 64), (4, 16)):
        make_run(f"d{width}-r{rank}", d_model=width, head_rank=rank, steps=50)
    runs, _ = load_all([tmp_path])
    look = styles(runs)
    assert look["d32-r4"].colour == look["d64-r4"].colour
    assert sum(look["d32-r16"].ink) < sum(look["d32-r4"].ink)
    assert look["d32-r4"].dash != look["d64-r4"].dash
    assert look["d32-r4"].marker != look["d64-r4"].marker


def test_names_beside_twelve_lines_do_not_overlap(make_run, tmp_path):
    for width, rank in itertools.product((64, 128, 256), (4, 8, 16, None)):
        make_run(f"d{width}-r{rank}", d_model=width, head_rank=rank, steps=100)
    runs, _ = load_all([tmp_path])
    for draw in (figures.loss, figures.singular_entropy, figures.anisotropy):
        figure = draw(runs)
        figure.draw_without_rendering()
        names = [text for text in figure.axes[-1].texts if text.get_text() in styles(runs)]
        # Of the text alone: the extent of an annotation takes in the line that leads to it.
        boxes = [matplotlib.text.Text.get_window_extent(text) for text in names]
        assert len(boxes) == 12
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
        assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_a_gap_within_its_error_is_drawn_as_an_upper_limit(make_run):
    folder = make_run(d_model=64, head_rank=16, steps=50)
    path = folder / "probes" / "00000050.npz"
    with np.load(path) as arrays:
        probe = dict(arrays)
    assert probe["ranks"].tolist() == [1, 2, 4, 8, 16, 32, 64]
    probe["plain/gap"] = np.array([0.9, 0.3, 0.004, -0.001, 1e-9, 0.0, 0.0])
    probe["plain/gap_se"] = np.array([0.01, 0.01, 0.003, 0.003, 0.01, 0.0, 0.0])
    np.savez(path, **probe)
    axes = figures.gap_by_rank([load(folder)]).axes[0]
    (bars,) = axes.containers
    np.testing.assert_array_equal(bars.lines[0].get_xydata(), [[1, 0.9], [2, 0.3]])
    (limits,) = (line for line in axes.lines if line.get_marker() == "v")
    np.testing.assert_allclose(limits.get_xydata(), [[4, 0.01], [8, 0.006]])
    for segment in bars.lines[2][0].get_segments():
        assert (segment[:, 1] > 0).all()


def test_final_loss_leaves_out_unfinished_runs(make_run):
    runs = [
        load(make_run("full", d_model=64)),
        load(make_run("low", d_model=64, head_rank=4)),
        load(make_run("stopped", d_model=64, head_rank=16, stop=200)),
    ]
    axes = figures.loss_by_rank(runs).axes[0]
    shown = sorted(container.lines[0].get_xdata()[0] for container in axes.containers)
    assert shown == [4, 64]
    with pytest.raises(NothingToShow, match="at least two head ranks"):
        figures.loss_by_rank([runs[0], runs[2]])


def test_final_loss_says_the_gap_beside_the_point(three_ranks):
    evaluations = [run.series("eval", "loss")[0][-1] for run in three_ranks]
    texts = [text.get_text() for text in figures.loss_by_rank(three_ranks).axes[0].texts]
    gaps = [f"{loss - evaluations[-1]:+.3f}" for loss in evaluations[:2]]
    assert texts == [*gaps, "full, D = 64"]


def test_figures_that_need_probes_say_so_without_any(make_run):
    folder = make_run(steps=100)
    for path in (folder / "probes").iterdir():
        path.unlink()
    kept = [
        line
        for line in (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
        if '"split": "train"' in line
    ]
    (folder / "metrics.jsonl").write_text("".join(kept))
    runs = [load(folder)]
    assert figures.loss(runs).axes
    for draw in (
        figures.spectrum,
        figures.singular_entropy,
        figures.gap_by_rank,
        figures.anisotropy,
    ):
        with pytest.raises(NothingToShow, match="no run has"):
            draw(runs)


def test_a_run_with_one_evaluation_is_drawn_but_for_the_heat_map(make_run):
    runs = [load(make_run(stop=0))]
    for draw in (figures.loss, figures.singular_entropy, figures.gap_by_rank, figures.anisotropy):
        assert draw(runs).axes
    with pytest.raises(NothingToShow, match="two probes"):
        figures.spectrum(runs)


def test_a_run_that_diverged_is_drawn_with_the_others(with_everything, make_run):
    folder = make_run("diverged", d_model=64, head_rank=2, language_rank=4)
    nothing = {"step": 400, "tokens": 3_276_800, "loss": math.nan, "loss_se": math.nan}
    with (folder / "metrics.jsonl").open("a") as file:
        for split in ("train", "eval"):
            file.write(json.dumps({"split": split} | nothing) + "\n")
    runs = [load(folder), *with_everything]
    for exhibit in EXHIBITS:
        exhibit.draw(runs).draw_without_rendering()


def test_drawing_leaves_matplotlibs_settings_as_they_were(three_ranks):
    before = dict(matplotlib.rcParams)
    figures.loss(three_ranks)
    assert dict(matplotlib.rcParams) == before
