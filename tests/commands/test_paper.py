"""`paper` writes its page where it is told, and refuses evaluations that are none."""

import pytest

from bottleneck.commands.paper import main
from bottleneck.errors import UserError


def test_paper_writes_its_page_where_it_is_told(tmp_path, capsys, monkeypatch):
    given = []

    def write(folder, evals, runs):
        given.extend([evals, runs])
        return folder / "paper.html"

    monkeypatch.setattr("bottleneck.paper.page.write_paper", write)  # drawing takes seconds
    assert main([f"--output={tmp_path}/page"]) == 0
    assert capsys.readouterr().out == f"page: {tmp_path}/page/paper.html\n"
    assert given == [None, []]


def test_evaluations_that_are_not_there_are_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="neither a file nor a folder"):
        main([f"--output={tmp_path}", f"--evals={tmp_path}/absent"])
    assert not (tmp_path / "paper.html").exists()
