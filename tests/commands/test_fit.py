"""`fit` from a table and from run folders, and what it says of those that will not do."""

import json

import numpy as np
import pytest

from bottleneck.commands.fit import main
from bottleneck.errors import UserError
from bottleneck.laws.points import from_table
from bottleneck.laws.scaling_law import ScalingLaw

LAW = ScalingLaw(E=1.69, A=119.09, alpha=0.246, B=410.7, beta=0.28)


@pytest.fixture
def table(tmp_path):
    sizes = np.geomspace(1e8, 1e10, 8)
    losses = LAW.predict(sizes, 3e11) * (1 + 1e-3 * np.cos(np.arange(8)))
    lines = [f"{size:.0f},{loss:.6f},3e11" for size, loss in zip(sizes, losses, strict=True)]
    path = tmp_path / "points.csv"
    path.write_text("\n".join(["n_params,loss,n_tokens", *lines]) + "\n")
    return path


def test_fit_writes_the_law_and_a_figure_beside_the_table(table, capsys):
    fixed = "--fixed=B=410.7,beta=0.28,E=1.69"
    assert main([f"--table={table}", fixed, "--bootstrap=50"]) == 0
    law = json.loads((table.parent / "law" / "law.json").read_text())
    assert law["constants"]["alpha"]["value"] == pytest.approx(0.246, abs=0.002)
    low, high = law["constants"]["alpha"]["interval_95"]
    assert low < law["constants"]["alpha"]["value"] < high
    assert law["constants"]["B"] == {"value": 410.7, "interval_95": None, "is_fixed": True}
    assert law["n_resamples"] == 50 and len(law["points"]) == law["n_points"] == 8
    assert (table.parent / "law" / "law.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "alpha" in printed and "given" in printed and "law.json" in printed


def test_smaller_models_are_held_against_the_law_of_the_larger(table, capsys):
    lines = table.read_text().splitlines()
    name, loss, tokens = lines[1].split(",")
    lines[1] = f"{name},{1.08 * float(loss)},{tokens}"
    table.write_text("\n".join(lines) + "\n")
    fixed = "--fixed=B=410.7,beta=0.28,E=1.69"
    main([f"--table={table}", fixed, "--bootstrap=0", "--fit_from=1.5e8"])
    law = json.loads((table.parent / "law" / "law.json").read_text())
    assert law["n_points"] == 7 and [p["is_fitted"] for p in law["points"]] == [False] + [True] * 7
    assert law["points"][0]["relative_gap"] == pytest.approx(0.08, abs=0.003)
    assert f"{law['points'][0]['relative_gap']:+.2%}" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"no point has 100 T parameters; the largest has 10\.0 G"):
        main([f"--table={table}", "--fit_from=1e14"])


def test_tables_of_other_kinds_and_names_hold_the_same_points(table, tmp_path):
    expected = from_table(table)
    rows = [
        {"Model Size": n, "Training FLOP": 6 * n * t, "loss": loss}
        for n, t, loss in zip(expected.n_params, expected.n_tokens, expected.loss, strict=True)
    ]
    as_rows, as_columns = tmp_path / "rows.json", tmp_path / "columns.json"
    as_rows.write_text(json.dumps(rows))
    as_columns.write_text(json.dumps({key: [row[key] for row in rows] for key in rows[0]}))
    for path in (as_rows, as_columns):
        found = from_table(path, {"n_params": "Model Size", "flops": "Training FLOP"})
        np.testing.assert_allclose(found.n_tokens, expected.n_tokens, rtol=1e-12)
        np.testing.assert_array_equal(found.loss, expected.loss)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give run folders, or --table=FILE"),
        (["--table=absent.csv"], "there is no such file"),
        (["--table={table}", "--fixed=B"], "--fixed takes NAME=VALUE"),
        (["--table={table}", "--fixed=B=x"], "B=x is not a number"),
        (["--table={table}", "--fixed=kappa=1"], "kappa is not a constant of"),
        (["--table={table}", "--columns", "loss=Loss"], "no such column; it has n_params, loss"),
        (["--table={table}", "--form=additive"], "needs the rank of every point"),
        (
            ["--table={table}", "--bootstrap=-1"],
            "--bootstrap=-1 is not allowed; it must be at least 0",
        ),
        (["--table={table}", "{table}"], "not both"),
        (["runs", "--columns", "loss=l"], "--table; give one"),
    ],
)
def test_mistakes_are_one_line(table, arguments, message):
    with pytest.raises(UserError, match=message) as raised:
        main([argument.format(table=table) for argument in arguments])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_params,loss\n1,2\n", "has no column n_tokens"),
        ("n_params,n_tokens,loss\n1e6,1e9,\n", "column loss is empty in row 1"),
        (
            "n_params,n_tokens,loss\n1e6,1e9,high\n",
            "column loss holds a value that is not a number",
        ),
        ("n_params,n_tokens,loss\n", "has no rows"),
    ],
)
def test_a_table_that_will_not_do_says_why(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        from_table(path)
