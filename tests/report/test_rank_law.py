"""What a sweep adds to a report: one table, a law of the rank, gap against W-error, sorting."""

import json
import shutil
import subprocess

import numpy as np
import polars as pl
import pytest
from scipy.optimize import curve_fit

from bottleneck.drawing.html import SORTING_SCRIPT
from bottleneck.drawing.style import NothingToShow
from bottleneck.errors import UserError
from bottleneck.laws.rank import RankLaw, fit_rank
from bottleneck.probes.spectral_metrics import w_error
from bottleneck.report.figures import rank_law
from bottleneck.report.gaps import gap_by_w_error
from bottleneck.runs import load, table


@pytest.fixture
def sweep(write_run, tmp_path):
    """2 widths × 4 ranks, one of them unfinished; beside them what is no run."""
    for width in (32, 64):
        for rank in (2, 4, 8, None):
            stop = 100 if (width, rank) == (64, 8) else None
            folder = tmp_path / f"d_model={width},head_rank={rank}"
            write_run(folder, d_model=width, head_rank=rank, steps=200, stop=stop)
    (tmp_path / "logs").mkdir()
    return tmp_path


def test_a_sweep_is_one_table_with_what_differs_and_what_was_measured(sweep):
    found = table(sweep)
    assert found.select("run", "split", "step").is_duplicated().sum() == 0
    assert found["run"].n_unique() == 8
    assert found.columns[:8] == [
        *("run", "is_complete", "n_params", "n_params_non_embedding", "d_model", "head_rank"),
        *("model.d_model", "model.head_rank"),
    ]
    for (name,), rows in found.group_by("run"):
        run = load(sweep / str(name))
        (head_rank,) = set(rows["model.head_rank"])
        assert head_rank == run.config.model.head_rank
        assert set(rows["head_rank"]) == {run.head_rank}
        assert set(rows["is_complete"]) == {run.is_complete}
        for split in ("train", "eval", "probe"):
            ours = rows.filter(pl.col("split") == split).sort("step")
            theirs = run.split(split)
            assert ours.select(theirs.columns).equals(theirs)
    last = found.filter(pl.col("split") == "eval").group_by("run", maintain_order=True).last()
    assert dict(zip(last["run"], last["step"], strict=True))["d_model=64,head_rank=8"] == 100


def test_the_law_is_found_again_where_it_holds():
    ranks = np.array([2, 4, 8, 16, 32, 64])
    for law in (RankLaw(3.5, 2.0, 0.7), RankLaw(0.2, 5.0, 2.5), RankLaw(4.0, 1.0, 0.1)):
        found = fit_rank(ranks, law(ranks))
        np.testing.assert_allclose(
            (found.floor, found.scale, found.exponent),
            (law.floor, law.scale, law.exponent),
            rtol=1e-4,
        )


def test_the_law_is_the_one_that_another_solver_finds_in_noise():
    ranks = np.array([2, 4, 8, 16, 32, 64, 128])
    losses = RankLaw(3.0, 2.0, 0.8)(ranks) + 0.02 * np.random.default_rng(0).standard_normal(7)
    theirs, _ = curve_fit(lambda r, a, c, p: a + c * r**-p, ranks, losses, p0=(3, 1, 1))
    ours = fit_rank(ranks, losses)
    np.testing.assert_allclose((ours.floor, ours.scale, ours.exponent), theirs, rtol=1e-4)


def test_losses_that_do_not_depend_on_the_rank_have_no_scale():
    law = fit_rank(np.array([2, 4, 8, 16]), np.full(4, 3.25))
    np.testing.assert_allclose(law(np.array([2.0, 100.0])), 3.25, rtol=1e-6)


def test_three_ranks_cannot_determine_three_constants():
    with pytest.raises(UserError, match="needs 4 different ranks, not 3"):
        fit_rank([2, 4, 8, 8], [4.0, 3.5, 3.3, 3.3])


def lines_of(axes):
    return [(line.get_xdata(), line.get_ydata()) for line in axes.lines]


def test_each_width_with_enough_finished_ranks_has_its_law(sweep):
    runs = [load(path.parent) for path in sorted(sweep.glob("*/config.json"))]
    figure = rank_law(runs)
    (points, _) = lines_of(figure.axes[0])  # the other width has three finished ranks
    assert sorted(points[0]) == [2, 4, 8, 32]
    losses = {
        run.head_rank: run.series("eval", "loss")[0][-1]
        for run in runs
        if run.config.model.d_model == 32
    }
    np.testing.assert_array_equal(points[1], [losses[rank] for rank in points[0]])
    with pytest.raises(NothingToShow, match="4 head ranks"):
        rank_law(runs[:3])


def test_runs_trained_otherwise_are_not_on_one_curve(make_run):
    runs = [load(make_run(f"{r}", head_rank=r, learning_rate=1e-4 * r)) for r in (2, 4, 8, 16)]
    with pytest.raises(NothingToShow):
        rank_law(runs)


def test_w_error_is_the_relative_distance_to_the_best_copy_of_that_rank():
    matrix = np.random.default_rng(0).standard_normal((40, 12))
    u, values, v = np.linalg.svd(matrix, full_matrices=False)
    ranks = np.array([1, 3, 11, 12])
    expected = [
        np.linalg.norm(matrix - (u[:, :r] * values[:r]) @ v[:r]) / np.linalg.norm(matrix)
        for r in ranks
    ]
    np.testing.assert_allclose(w_error(values)[ranks - 1], expected, atol=1e-14)


def test_gap_against_w_error_shows_each_truncation_that_was_measured(sweep):
    run = load(sweep / "d_model=64,head_rank=None")
    ((error, gap),) = lines_of(gap_by_w_error([run]).axes[0])
    probe = run.probe()
    shown = (probe.ranks < 64) & (probe.plain.gap > 2 * probe.plain.gap_se)
    np.testing.assert_array_equal(gap, probe.plain.gap[shown])
    np.testing.assert_allclose(error, w_error(probe.singular_values)[probe.ranks[shown] - 1])


def test_gaps_that_are_all_noise_are_not_drawn(make_run):
    folder = make_run(head_rank=4)
    path = max((folder / "probes").iterdir())
    arrays = dict(np.load(path))
    np.savez(path, **arrays | {"plain/gap_se": np.abs(arrays["plain/gap"])})
    with pytest.raises(NothingToShow, match="no gap is more than"):
        gap_by_w_error([load(folder)])


def test_a_column_is_sorted_by_its_numbers_with_their_units_and_gaps_last():
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node to run the page's script")
    cells = [
        "1.84 M",
        "999 k",
        "–",
        "5.63 ± 0.10",
        "+0.737 ± 0.030",
        "4/128",
        "-2",
        "1,234",
        "name",
    ]
    program = f"{SORTING_SCRIPT}\nconst cells = {json.dumps(cells)};"
    program += "const sorted = sign => [...cells].sort((a, b) => compareCells(a, b, sign));"
    program += "console.log(JSON.stringify([sorted(1), sorted(-1)]))"
    result = subprocess.run([node, "-e", program], capture_output=True, text=True, check=True)
    ascending, descending = json.loads(result.stdout)
    numbers = ["-2", "+0.737 ± 0.030", "4/128", "5.63 ± 0.10", "1,234", "999 k", "1.84 M"]
    assert ascending[:7] == numbers and set(ascending[7:]) == {"–", "name"}
    assert descending[:7] == numbers[::-1] and set(descending[7:]) == {"–", "name"}
