"""What a run folder says to a scaling law: its size, its tokens, its loss, counted as asked."""

import dataclasses
import json

import numpy as np
import pytest

from bottleneck.commands.fit import main
from bottleneck.errors import UserError
from bottleneck.laws.points import (
    FLOP_CONVENTIONS,
    N_CONVENTIONS,
    Points,
    from_runs,
    from_table,
)
from bottleneck.runs.reading import load_all


@pytest.fixture
def runs(make_run, tmp_path):
    make_run("low", d_model=64, head_rank=8)
    make_run("full", d_model=64)
    make_run("begun", d_model=32, stop=100)
    return load_all([tmp_path])[0]


def test_each_finished_run_is_a_point_of_its_last_held_out_loss(runs):
    points = from_runs(runs)
    assert points.names == ("low", "full")
    np.testing.assert_array_equal(points.rank, [8, 64])
    np.testing.assert_array_equal(points.width, [64, 64])
    np.testing.assert_array_equal(points.n_tokens, [400 * 32 * 256] * 2)
    losses = [run.split("eval")["loss"][-1] for run in runs if run.is_complete]
    np.testing.assert_array_equal(points.loss, losses)
    least = [min(run.split("eval")["loss"]) for run in runs if run.is_complete]
    best = from_runs(runs, at_least_loss=True)
    np.testing.assert_array_equal(best.loss, least)
    assert np.all(best.n_tokens <= points.n_tokens)


def test_conventions_count_embedding_and_head_or_do_not(runs):
    # Pythia's way: L(12D² + 13D) + 2D inside, a table of V·D before, a head after.
    V, D, inside = 8192, 64, 4 * (12 * 64**2 + 13 * 64) + 2 * 64
    full = next(i for i, name in enumerate(from_runs(runs).names) if name == "full")
    sizes = {n: from_runs(runs, n).n_params[full] for n in N_CONVENTIONS}
    assert sizes == {"total": inside + 2 * V * D, "non_embedding": inside}
    tokens = 400 * 32 * 256
    flops = {c: from_runs(runs, "total", c).flops[full] / tokens / 6 for c in FLOP_CONVENTIONS}
    assert flops == {"total": inside + 2 * V * D, "with_head": inside + V * D} | {
        "without_head": inside
    }
    low = from_runs(runs, "total", "with_head").flops[1 - full] / tokens / 6
    assert low == inside + 8 * (V + D)


def test_runs_on_different_text_make_no_law(runs):
    low, full = (run for run in runs if run.is_complete)
    elsewhere = dataclasses.replace(low.corpus, digest="1" * 64)
    with pytest.raises(UserError, match="different text"):
        from_runs([dataclasses.replace(low, trained_on=elsewhere), full])


def test_unfinished_runs_make_no_points(make_run, tmp_path):
    make_run("begun", stop=100)
    with pytest.raises(UserError, match="no run is finished"):
        from_runs(load_all([tmp_path])[0])


def test_the_best_of_a_run_is_where_its_loss_was_least_after_the_start(make_run, tmp_path):
    path = make_run("run", steps=100) / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    losses = {0: 1.0, 50: 2.0, 100: 2.5}  # T = 0 has no law, however good its loss
    for line in lines:
        if line["split"] == "eval":
            line["loss"] = losses[line["step"]]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    runs, _ = load_all([tmp_path])
    last, best = from_runs(runs), from_runs(runs, at_least_loss=True)
    assert (last.loss, last.n_tokens) == ([2.5], [100 * 32 * 256])
    assert (best.loss, best.n_tokens) == ([2.0], [50 * 32 * 256])
    assert last.flops == [6 * last.n_params[0] * 100 * 32 * 256]
    assert best.flops == [6 * best.n_params[0] * 50 * 32 * 256]


def test_what_is_taken_keeps_budgets_names_and_bests_together(runs):
    for points in (from_runs(runs), from_runs(runs, at_least_loss=True)):
        taken = points.take(np.array([False, True]))
        assert taken.names == ("full",) and taken.note == points.note != ""
        np.testing.assert_array_equal(taken.flops, points.flops[1:])
        np.testing.assert_array_equal(taken.loss, points.loss[1:])
        np.testing.assert_array_equal(taken.rank, [64])


def test_a_budget_is_the_tables_or_six_flops_a_parameter_and_token(tmp_path):
    path = tmp_path / "points.tsv"
    path.write_text("n_params\tn_tokens\tloss\n1e6\t1e9\t3.5\n2e6\t3e9\t3.25\n")
    plain = from_table(path)
    np.testing.assert_allclose(plain.flops, [6e15, 3.6e16], rtol=1e-12)
    assert plain.note.endswith("C: 6·N·T")
    path.write_text("n_params\tn_tokens\tloss\tflops\n1e6\t1e9\t3.5\t7e15\n")
    given = from_table(path)
    assert given.flops == [7e15] and given.note.endswith("C: the table's")
    path.write_text("n_params\tloss\tflops\n1e6\t3.5\t7.2e15\n")
    assert from_table(path).n_tokens == pytest.approx([1.2e9])


def test_five_thousand_rows_are_not_too_many(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("n_params,n_tokens,loss\n" + 5000 * "1e6,1e9,3.5\n")
    assert len(from_table(path)) == 5000
    path.write_text("n_params,n_tokens,loss\n" + 5001 * "1e6,1e9,3.5\n")
    with pytest.raises(UserError, match="5,001 rows"):
        from_table(path)


def test_points_are_one_table_whose_rows_are_taken_together():
    given = [np.arange(1.0, 5) + 10 * i for i in range(5)]
    points = Points(*given, names=("a", "b", "c", "d"), note="counted so")
    np.testing.assert_array_equal(points.flops, 6 * given[0] * given[1])
    for chosen, rows in (np.array([False, True, False, True]), [1, 3]), (np.array([3, 3]), [3, 3]):
        taken = points.take(chosen)
        columns = (taken.n_params, taken.n_tokens, taken.loss, taken.rank, taken.width)
        for column, whole in zip(columns, given, strict=True):
            np.testing.assert_array_equal(column, whole[rows])
        np.testing.assert_array_equal(taken.flops, points.flops[rows])
        assert taken.names == tuple("abcd"[i] for i in rows) and taken.note == "counted so"
    without = Points([1e6, 2e6], [1e9, 1e9], [3, 2]).take([1])
    assert without.rank is None and without.names == ("1",) and without.loss.dtype == np.float64


@pytest.fixture
def grid_of_runs(make_run, tmp_path):
    for width in (32, 64, 128):
        for rank in (4, 16, None):
            make_run(f"runs/{width}-{rank}", d_model=width, head_rank=rank, steps=100)
    return str(tmp_path / "runs")


FIXED = "--fixed=beta=0.28,B=410.7,E=1.69,A=119.09"  # so that the grids of starts are small


def test_fit_reads_runs_with_their_ranks(grid_of_runs, tmp_path, capsys):
    assert main([grid_of_runs, FIXED, "--bootstrap=0", "--form=effective_width"]) == 0
    assert "gamma" in capsys.readouterr().out
    assert (tmp_path / "runs" / "law" / "law.json").is_file()


@pytest.mark.slow
def test_fit_compares_the_laws_where_ranks_differ(grid_of_runs, capsys):
    assert main([grid_of_runs, FIXED, "--bootstrap=0"]) == 0
    printed = capsys.readouterr().out
    for form in ("chinchilla", "additive", "effective_width", "effective_data"):
        assert form in printed
