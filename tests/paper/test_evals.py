"""Published evaluations: the same numbers from a folder of result files as from their summary."""

import json

import pytest

from bottleneck.errors import UserError
from bottleneck.paper.evals import loss_series, read_evals

PERPLEXITIES = {3000: 135.0, 13000: 49.7, 143000: 38.06}


@pytest.fixture
def folder(tmp_path):
    """The layout of evals/ in EleutherAI/pythia."""
    root = tmp_path / "evals" / "pythia-v1"
    for shots in ("zero-shot", "five-shot"):
        where = root / "pythia-160m" / shots
        where.mkdir(parents=True)
        for step, perplexity in PERPLEXITIES.items():
            scale = 1.0 if shots == "zero-shot" else 100.0
            results = {"lambada_openai": {"ppl": scale * perplexity, "acc": 0.3}}
            name = f"160m_step{step}.json" if scale == 1 else f"160m-5shot_step{step}.json"
            (where / name).write_text(json.dumps({"results": results, "versions": {}}))
    return tmp_path / "evals"


def test_a_folder_of_result_files_is_read_by_model_and_step(folder):
    models = read_evals(folder)
    assert list(models) == ["pythia-v1/pythia-160m"]
    (rows,) = models.values()
    assert {row["step"]: row["lambada_openai/ppl"] for row in rows} == PERPLEXITIES
    assert [row["step"] for row in rows] == sorted(PERPLEXITIES)


def test_a_summary_holds_the_same(folder, tmp_path):
    (rows,) = read_evals(folder).values()
    path = tmp_path / "summary.json"
    path.write_text(json.dumps({"zero_shot": {"pythia-v1/pythia-160m": rows[::-1]}}))
    assert read_evals(path) == read_evals(folder)


def test_losses_are_logarithms_of_the_perplexity(folder):
    (rows,) = read_evals(folder).values()
    series = loss_series("160m", rows)
    assert series.loss[-1] == pytest.approx(3.6392, abs=1e-4)  # log 38.06
    with pytest.raises(UserError, match="have no wikitext/word_perplexity"):
        loss_series("160m", rows, "wikitext/word_perplexity")


def test_what_is_no_evaluation_is_one_line(tmp_path):
    with pytest.raises(UserError, match="neither a file nor a folder"):
        read_evals(tmp_path / "absent")
    with pytest.raises(UserError, match="no zero-shot evaluations"):
        read_evals(tmp_path)
    path = tmp_path / "m_step10.json"
    path.write_text("{}")
    with pytest.raises(UserError, match="has no zero_shot"):
        read_evals(path)
    with pytest.raises(UserError, match="has no results"):
        read_evals(tmp_path)
    path.write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        read_evals(path)
