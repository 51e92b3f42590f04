import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from bottleneck.report.summary import (
    MEASURES,
    full_rank_reference,
    print_summary,
    summary_table,
    with_error,
)
from bottleneck.runs import load


def final_evaluation(folder, loss, loss_se, tokens=3_276_800):
    with (folder / "metrics.jsonl").open("a") as file:
        fields = {"step": 400, "split": "eval", "tokens": tokens, "loss": loss, "loss_se": loss_se}
        file.write(json.dumps(fields) + "\n")
    return load(folder)


def test_gap_is_the_difference_to_the_full_rank_run_with_its_error(make_run):
    low = final_evaluation(make_run("low", head_rank=8), loss=4.75, loss_se=0.03)
    full = final_evaluation(make_run("full"), loss=4.25, loss_se=0.04)
    rows = summary_table([low, full]).rows(named=True)
    assert [row["run"] for row in rows] == ["low", "full"]
    assert rows[0]["gap"] == pytest.approx(0.5, rel=1e-15)
    assert rows[0]["gap_se"] == pytest.approx(0.05, rel=1e-15)  # a 3-4-5 triangle
    assert (rows[1]["gap"], rows[1]["gap_se"]) == (None, None)


def test_the_error_of_a_gap_is_paired_where_both_runs_kept_their_documents(make_run):
    source = np.random.default_rng(0)
    n_tokens = source.integers(50, 200, 40)
    hardness = source.normal(4, 1, 40)  # of documents, which both runs find hard alike
    means = {"low": hardness + source.normal(0.5, 0.1, 40), "full": hardness}
    runs = []
    for name, rank in (("low", 8), ("full", None)):
        folder = make_run(name, head_rank=rank)
        last = max((folder / "probes").iterdir())
        arrays = dict(np.load(last))
        arrays |= {"document_losses": means[name] * n_tokens, "document_tokens": n_tokens}
        np.savez(last, **arrays)
        loss = float(np.average(means[name], weights=n_tokens))
        runs.append(final_evaluation(folder, loss=loss, loss_se=0.2))
    error = summary_table(runs)["gap_se"][0]
    # Independently: the jackknife over documents.
    gaps = means["low"] - means["full"]
    left_out = [
        np.average(np.delete(gaps, i), weights=np.delete(n_tokens, i)) for i in range(len(gaps))
    ]
    jackknife = np.sqrt((len(gaps) - 1) * np.var(left_out))
    assert error == pytest.approx(jackknife, rel=0.05)


def test_rows_hold_the_last_evaluation_and_probe_and_the_median_speed(make_run):
    folder = make_run(d_model=64, head_rank=8, n_layers=3)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    probe = [line for line in lines if line["split"] == "probe"][-1]
    speeds = sorted(line["tokens_per_second"] for line in lines if line["split"] == "train")
    (row,) = summary_table([load(folder)]).rows(named=True)
    assert (row["step"], row["tokens"], row["head_rank"], row["d_model"]) == (400, 3_276_800, 8, 64)
    for key in ("singular_entropy", "effective_rank", "stable_rank"):
        assert row[key] == probe[key]
    assert row["anisotropy"] == probe["anisotropy/3"]
    assert row["tokens_per_second"] == pytest.approx((speeds[19] + speeds[20]) / 2)


def test_a_loss_above_its_least_is_said_with_the_verdict(make_run):
    folder = make_run()
    least = min(load(folder).split("eval")["loss"][:-1])
    run = final_evaluation(folder, loss=1.1 * least, loss_se=0.02)
    (row,) = summary_table([run]).rows(named=True)
    assert row["relative_loss"] == pytest.approx(0.1, rel=1e-12)
    (measure,) = (m for m in MEASURES if m.heading == "above\nminimum")
    # One evaluation above the rest is no saturation.
    assert (row["verdict"], measure.show(row)) == ("does not saturate", "10.00%")
    assert measure.show(row | {"verdict": "saturates"}) == "10.00%, saturates"


@pytest.mark.parametrize(
    "other", [{"d_model": 32}, {"n_layers": 2}, {"stop": 200}, {"steps": 300}], ids=str
)
def test_runs_that_differ_in_more_than_rank_have_no_gap(make_run, other):
    low, full = load(make_run("low", head_rank=8)), load(make_run("full", **other))
    assert summary_table([low, full])["gap"].to_list() == [None, None]


def test_runs_on_different_text_have_no_gap(make_run):
    low, folder = load(make_run("low", head_rank=8)), make_run("full")
    record = json.loads((folder / "config.json").read_text())
    record["corpus"]["validation_tokens"] += 1
    (folder / "config.json").write_text(json.dumps(record))
    assert full_rank_reference(low, [low, load(folder)]) is None


@pytest.mark.parametrize(
    ("field", "value", "will_do"),
    [("remat", "full", True), ("attention", "xla", True), ("dtype", "bfloat16", False)],
)
def test_a_reference_may_be_computed_in_another_way_but_not_dtype(make_run, field, value, will_do):
    low, folder = load(make_run("low", head_rank=8)), make_run("full")
    record = json.loads((folder / "config.json").read_text())
    record["config"]["compute"][field] = value
    (folder / "config.json").write_text(json.dumps(record))
    assert (full_rank_reference(low, [low, load(folder)]) is not None) == will_do


def test_reference_of_the_same_seed_comes_first(make_run):
    runs = [load(make_run(f"full{seed}", seed=seed)) for seed in (0, 1, 2)]
    for seed in (0, 1, 2):
        low = load(make_run(f"low{seed}", seed=seed, head_rank=8))
        reference = full_rank_reference(low, [low, *runs])
        assert reference is not None and reference.name == f"full{seed}"


def test_unmeasured_values_are_null_and_shown_as_dashes(make_run):
    folder = make_run(steps=100)
    (folder / "metrics.jsonl").write_text(
        '{"step": 1, "split": "train", "tokens": 9, "loss": 9.0}\n'
    )
    table = summary_table([load(folder)])
    (row,) = table.rows(named=True)
    assert row["loss"] is None and row["singular_entropy"] is None
    assert row["tokens_per_second"] is None
    assert [measure.show(row) for measure in MEASURES][4:] == ["–"] * 8


def test_errors_are_written_to_two_digits_and_values_to_as_many():
    assert with_error(4.31249, 0.0112) == "4.312 ± 0.011"
    assert with_error(4.31249, 0.00052) == "4.31249 ± 0.00052"
    assert with_error(431.249, 25.2) == "431 ± 25"
    assert with_error(0.25, 0.04, sign="+") == "+0.250 ± 0.040"
    assert with_error(-0.25, 0.0, sign="+") == "-0.250"
    assert with_error(math.nan, math.nan) == "nan"
    assert with_error(None, None) == "–"


def test_summary_fits_a_terminal_of_80_columns(make_run):
    runs = [
        load(make_run("rank8", d_model=256, head_rank=8)),
        load(make_run("full", d_model=256)),
    ]
    output = io.StringIO()
    print_summary(summary_table(runs), Console(file=output, width=80))
    lines = output.getvalue().splitlines()
    assert len(lines) == 4  # two of headings, one for each run: nothing is folded
    assert "…" not in output.getvalue()
    assert "8/256" in lines[2] and " ± " in lines[2] and "256/256" in lines[3]
