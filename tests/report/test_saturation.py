"""The figure of saturation: what it draws of a run that ends above its least loss."""

import json

import numpy as np
import pytest

from bottleneck import runs
from bottleneck.drawing.style import NothingToShow
from bottleneck.report.saturation import saturation_figure


@pytest.fixture
def saturated(make_run):
    """A run whose loss, entropy and anisotropy rise from steps 500, 600 and 400 on."""
    folder = make_run("saturated", steps=1000, probe_every=40)
    path = folder / "metrics.jsonl"
    rng = np.random.default_rng(0)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        step = line["step"]
        if line["split"] == "eval":
            line["loss"] += 0.0012 * max(0, step - 500)
        if line["split"] == "probe":
            line["singular_entropy"] = 0.3 + 0.003 * max(0, step - 600) + rng.normal(0, 0.01)
            line["anisotropy/4"] = 0.1 + 0.001 * max(0, step - 400) + rng.normal(0, 0.01)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return runs.load(folder)


def test_a_run_that_saturates_is_said_to_and_its_onsets_are_where_they_were_put(saturated):
    figure = saturation_figure([saturated])
    of_loss, of_onsets = figure.axes
    (line,) = of_loss.get_lines()
    assert line.get_label().startswith("saturated: saturates (p")
    losses = saturated.split("eval")["loss"].to_numpy()
    np.testing.assert_allclose(line.get_ydata()[-1], losses[-1] / losses.min() - 1, rtol=1e-12)
    put = {"#d55e00": 500, "#0072b2": 600, "#009e73": 400}  # loss, entropy, anisotropy
    drawn = {c.lines[0].get_color(): c.lines[0].get_xdata()[0] for c in of_onsets.containers}
    assert drawn.keys() == put.keys()
    for colour, step in drawn.items():
        assert step == pytest.approx(put[colour], abs=40)  # steps between two probes


def test_a_run_that_does_not_saturate_has_no_onset_of_its_loss(make_run):
    run = runs.load(make_run(steps=1000, probe_every=40))
    figure = saturation_figure([run])
    assert "does not saturate" in figure.axes[0].get_lines()[0].get_label()
    assert not any(
        container.lines[0].get_color() == "#d55e00"
        for panel in figure.axes[1:]
        for container in panel.containers
    )


def test_few_evaluations_are_nothing_to_show(make_run):
    with pytest.raises(NothingToShow, match="no run has 8 validation losses"):
        saturation_figure([runs.load(make_run(steps=300, probe_every=50))])
