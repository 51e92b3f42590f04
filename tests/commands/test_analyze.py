import os

import pytest

from bottleneck.commands.analyze import main
from bottleneck.errors import UserError
from bottleneck.report.exhibits import EXHIBITS


@pytest.fixture(autouse=True)
def one_figure(monkeypatch):
    """The tests of the report draw them all; here one is enough."""
    monkeypatch.setattr("bottleneck.report.page.EXHIBITS", EXHIBITS[:1])


def test_analyze_writes_the_report_beside_the_runs_and_says_where(make_run, tmp_path, capsys):
    make_run("sweep/rank8", head_rank=8, steps=50)
    make_run("sweep/full", steps=50)
    assert main([str(tmp_path / "sweep")]) == 0
    assert capsys.readouterr().out.endswith(f"report: {tmp_path}/sweep/report/report.html\n")
    assert (tmp_path / "sweep" / "report" / "report.html").is_file()
    # Where the report went into is itself no run, so the same command works again.
    assert main([str(tmp_path / "sweep")]) == 0


def test_analyze_of_several_paths_reports_in_what_they_share(make_run, tmp_path):
    paths = [make_run("sweep/rank8", head_rank=8, steps=50), make_run("sweep/full", steps=50)]
    main([os.path.relpath(path) for path in paths])
    assert (tmp_path / "sweep" / "report" / "report.html").is_file()


def test_analyze_writes_where_it_is_told(make_run, tmp_path, capsys):
    folder = make_run(steps=50)
    main([str(folder), f"--output={tmp_path}/elsewhere"])
    assert (tmp_path / "elsewhere" / "figures" / "loss.png").is_file()
    assert not (folder / "report").exists()


def test_analyze_names_the_runs_that_it_leaves_out(make_run, tmp_path, capsys):
    make_run("good", steps=50)
    (make_run("begun", steps=50) / "metrics.jsonl").unlink()
    assert main([str(tmp_path)]) == 0
    assert "begun has no metrics yet" in capsys.readouterr().err


def test_analyze_of_no_run_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="neither a run folder"):
        main([str(tmp_path)])
