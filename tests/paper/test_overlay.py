"""The paper's curves beside runs of the same width: the right ones, and in the right places."""

import json

import numpy as np
import pytest

from bottleneck import runs
from bottleneck.commands.paper import main
from bottleneck.paper.curves import MODELS, curve, w_errors
from bottleneck.paper.overlay import PaperOverlay
from bottleneck.report import figures
from bottleneck.report.page import write_report

TOKENS_PER_STEP = 1024 * 2048


@pytest.fixture
def make_series(make_run):
    """A run of Pythia's batches, probed four times up to a step."""

    def make(name="run", *, d_model=128, last=140_000):
        folder = make_run(name, d_model=d_model, steps=30, probe_every=10)
        text = (folder / "config.json").read_text()
        record = json.loads(text)
        record["config"]["train"] |= {"steps": last, "batch_size": 1024, "sequence_length": 2048}
        (folder / "config.json").write_text(json.dumps(record))
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        steps = {step: round(step * last / 30) for step in (0, 10, 20, 30)}
        for row in rows:
            row["step"] = steps[row["step"]]
            row["tokens"] = row["step"] * TOKENS_PER_STEP
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "metrics.jsonl").write_text(lines)
        for old, new in sorted(steps.items(), reverse=True):
            (folder / "probes" / f"{old:08}.npz").rename(folder / "probes" / f"{new:08}.npz")
        return runs.load(folder)

    return make


def bands(panel):
    return [line for line in panel.lines if line.get_alpha() is not None and line.get_lw() > 2]


def test_the_curves_are_those_of_the_models_of_a_width():
    # What the paper's text and its figure 1b say: the best steps, and where the losses end.
    best = {128: 35_000, 256: 50_000, 512: 50_000, 768: 75_000, 1024: 140_000}
    final = {128: 4.362, 256: 3.994, 512: 3.634, 768: 3.236, 1024: 2.836}
    for width in MODELS:
        steps, loss = curve("loss", width)
        assert steps[np.argmin(loss)] == best[width]
        assert loss[steps == 140_000] == pytest.approx(final[width], abs=0.005)
        steps, entropy = curve("singular_entropy", width)
        assert (np.diff(steps) > 0).all() and (entropy < np.log(width)).all()
        steps, anisotropy = curve("anisotropy", width)
        assert (np.diff(steps) > 0).all() and (anisotropy > 0).all() and (anisotropy < 1).all()
    assert [array.size for array in curve("loss", 64)] == [0, 0]


def test_a_curve_lies_where_its_steps_are_and_leaves_the_axes_to_the_run(make_series):
    run = make_series()
    plain, laid = figures.loss([run]), figures.loss([run], overlay=PaperOverlay())
    (band,) = bands(laid.axes[0])
    steps, loss = curve("loss", 128)
    np.testing.assert_allclose(band.get_xdata(), steps * TOKENS_PER_STEP)
    np.testing.assert_allclose(band.get_ydata(), loss)
    (late,) = bands(laid.axes[1])
    assert late.get_xdata()[0] == 70_000 * TOKENS_PER_STEP
    for one, other in zip(plain.axes, laid.axes, strict=True):
        assert one.get_xlim() == other.get_xlim()
        assert bands(one) == []
    for draw in (figures.singular_entropy, figures.anisotropy):
        panels = draw([run], overlay=PaperOverlay()).axes
        (band,) = [line for panel in panels for line in bands(panel)]
        assert any("pale: the paper" in panel.get_title("left") for panel in panels)
        assert (np.diff(band.get_xdata()) > 0).all()


def test_a_curve_goes_no_further_than_the_runs(make_series):
    run = make_series(last=60_000)
    (band,) = bands(figures.loss([run], overlay=PaperOverlay()).axes[0])
    assert 60_000 <= band.get_xdata()[-1] / TOKENS_PER_STEP <= 65_000


def test_all_of_a_curve_can_be_seen(make_series):
    run = make_series()
    panels = figures.singular_entropy([run], overlay=PaperOverlay()).axes
    assert bands(panels[0])
    low, high = panels[0].get_ylim()
    for panel in panels:
        for line in panel.lines:
            assert low <= np.min(line.get_ydata()) and np.max(line.get_ydata()) <= high


def test_widths_that_the_paper_has_not_get_nothing(make_series):
    run = make_series(d_model=64)
    for draw in (figures.loss, figures.singular_entropy, figures.anisotropy):
        assert not any(bands(panel) for panel in draw([run], overlay=PaperOverlay()).axes)
    assert len(figures.spectrum([run], overlay=PaperOverlay()).axes[0].collections) == 1


def test_dots_on_the_heat_map_have_its_colours(make_series):
    panel = figures.spectrum([make_series(last=143_000)], overlay=PaperOverlay()).axes[0]
    mesh, *dots = panel.collections
    assert len(dots) == 2
    for of_step in dots:
        of_step.update_scalarmappable()
        np.testing.assert_allclose(
            of_step.get_facecolor(), mesh.cmap(mesh.norm(of_step.get_array()))
        )
    np.testing.assert_array_equal(dots[0].get_offsets()[:, 1], [1, 2, 10, 50, 100])
    assert {tuple(of_step.get_offsets()[:, 0]) for of_step in dots} == {
        (40_000.0,) * 5,
        (143_000.0,) * 5,
    }


def test_the_report_says_what_is_the_papers_where_it_is_asked_for(
    make_series, tmp_path, monkeypatch
):
    from bottleneck.report.exhibits import EXHIBITS

    monkeypatch.setattr("bottleneck.report.page.EXHIBITS", EXHIBITS[:1])
    run = make_series()
    assert "Godey" not in write_report([run], tmp_path / "plain").read_text()
    assert main([str(run.path), f"--output={tmp_path / 'paper'}"]) == 0
    assert "Read off the figures of Godey" in (tmp_path / "paper" / "report.html").read_text()


def test_the_published_curves_fall_from_one_to_nothing():
    curves = w_errors()
    assert len(curves) == 6
    for errors in curves.values():
        assert list(errors) == sorted(errors) and 0.5 < errors[512] < 0.7 and errors[13_000] < 0.1
        assert list(errors.values()) == sorted(errors.values(), reverse=True)
