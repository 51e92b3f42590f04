"""The best loss of a rank, the estimate of the rank from losses, and the figure of both."""

import json

import numpy as np
import pytest

from bottleneck.commands.flags import load_config
from bottleneck.data.known_rank import Language, make_language
from bottleneck.drawing.style import NothingToShow
from bottleneck.report.calibration import Calibration, best_losses, calibrate, calibration
from bottleneck.runs import load


def truncated_svd_loss(language, rank):
    logits = np.log(language.transitions)
    left, values, right = np.linalg.svd(logits - logits.mean(axis=1, keepdims=True))
    return language.cross_entropy(left[:, :rank] * values[:rank] @ right[:rank])


@pytest.mark.parametrize("seed", [0, 1])
def test_best_loss_falls_with_the_rank_to_the_floor_and_beats_the_truncated_svd(seed):
    language = make_language(32, 4, seed)
    ranks = np.arange(1, 7)
    best = best_losses(language, ranks)
    assert np.all(np.diff(best[:4]) < -0.05)
    np.testing.assert_allclose(best[3:], language.entropy_rate, rtol=0, atol=1e-8)
    svd = [truncated_svd_loss(language, rank) for rank in ranks]
    assert np.all(best[:3] < np.array(svd[:3]) - 0.05)
    unigram = -np.sum(language.stationary * np.log(language.stationary))
    assert best[0] < unigram


def test_best_loss_does_not_depend_on_which_ranks_are_asked_for():
    language = make_language(24, 5, seed=0)
    together = best_losses(language, [1, 2, 3, 4, 5])
    alone = [best_losses(language, [rank])[0] for rank in (2, 4)]
    np.testing.assert_allclose(alone, together[[1, 3]], atol=2e-3)  # of two local minima


def brute_force_rank_one(language: Language) -> float:
    """The best head of rank 1 for three tokens, by trying all directions of its centred row space.

    Given the logits' direction w, the best u of each token is one number, where the derivative
    E_softmax(u w)[w] − E_P[w], which grows with u, is 0: found by bisection.
    """
    angles = np.linspace(0, np.pi, 5001)
    plane = np.linalg.qr(np.array([[1.0, -1, 0], [1, 1, -2]]).T)[0]
    directions = (plane @ [np.cos(angles), np.sin(angles)]).T  # [angles, 3]
    wanted = directions @ language.transitions.T  # [angles, 3], one for each context
    low, high = np.full(wanted.shape, -200.0), np.full(wanted.shape, 200.0)
    for _ in range(60):
        middle = (low + high) / 2
        logits = middle[..., None] * directions[:, None, :]
        p = np.exp(logits - logits.max(axis=-1, keepdims=True))
        found = np.sum(p * directions[:, None, :], axis=-1) / p.sum(axis=-1)
        low, high = np.where(found < wanted, middle, low), np.where(found < wanted, high, middle)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    losses = -np.einsum("s,st,ast->a", language.stationary, language.transitions, log_p)
    return float(losses.min())


@pytest.mark.parametrize("seed", range(4))
def test_best_loss_is_what_brute_force_finds_for_three_tokens(seed):
    language = make_language(3, 2, seed)
    (best,) = best_losses(language, [1])
    expected = brute_force_rank_one(language)
    assert best == pytest.approx(expected, abs=1e-6)
    assert best > language.entropy_rate + 1e-4


def sweep_of(excess, error=0.004, true_rank=6):
    ranks = np.arange(3, 3 + len(excess))
    best = np.zeros(len(excess))
    errors = np.full(len(excess), error)
    return Calibration(true_rank, 2.5, ranks, 2.5 + np.array(excess), errors, ranks, best)


def test_critical_rank_is_the_first_from_which_all_losses_are_at_the_floor():
    assert sweep_of([0.4, 0.2, 0.1, 0.005, 0.003, -0.004]).critical_rank == 6
    # A loss below the threshold by luck, under ranks that are not, does not count.
    assert sweep_of([0.4, 0.01, 0.1, 0.005, 0.003]).critical_rank == 6
    assert sweep_of([0.001, 0.002]).critical_rank == 3
    assert sweep_of([0.4, 0.2, 0.1]).critical_rank is None
    assert sweep_of([0.001, 0.002, np.nan]).critical_rank is None  # a run that diverged


def test_critical_rank_asks_for_two_standard_errors_beyond_the_slack():
    losses = [0.2, 0.017, 0.002]
    assert sweep_of(losses, error=0.002).critical_rank == 5
    assert sweep_of(losses, error=0.004).critical_rank == 4


@pytest.fixture
def make_sweep(make_run):
    """Runs on a language of known rank with the validation losses given, by rank of the head."""

    def make(losses, rank=2):
        runs = []
        for head_rank, loss in losses.items():
            name = f"language{rank}-rank{head_rank}"
            path = make_run(name, head_rank=head_rank, language_rank=rank, steps=50)
            last = {"step": 50, "split": "eval", "tokens": 1, "loss": loss, "loss_se": 0.003}
            with (path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(last) + "\n")
            runs.append(load(path))
        return runs

    return make


def test_figure_shows_measured_losses_floor_best_losses_and_both_ranks(make_sweep):
    language = make_language(24, 2, seed=0)
    floor, best = language.entropy_rate, best_losses(language, [1, 2, 3, 4])
    losses = {1: best[0] + 0.01, 3: floor + 0.005, 4: floor + 0.002}
    (panel,) = calibration(make_sweep(losses)).axes
    lines = {line.get_label(): line for line in panel.lines}
    np.testing.assert_array_equal(lines["best of rank R"].get_xdata(), [1, 2, 3, 4])
    np.testing.assert_allclose(lines["best of rank R"].get_ydata(), best, atol=1e-6)
    assert set(lines["entropy rate"].get_ydata()) == {floor}
    (measured,) = panel.containers
    np.testing.assert_allclose(measured.lines[0].get_xydata(), list(losses.items()))
    assert any(list(line.get_xdata()) == [2, 2] for line in panel.lines)
    # Rank 2 was not trained, so 3 is the least rank seen at the floor.
    assert panel.get_title(loc="left") == "true rank 2, estimated from the losses: 3"


def test_each_language_has_a_panel_of_its_own(make_sweep):
    runs = [*make_sweep({1: 3.0, 2: 2.5}), *make_sweep({2: 3.0, 3: 2.5}, rank=3)]
    assert [sweep.true_rank for sweep in calibrate(runs)] == [2, 3]
    assert len(calibration(runs).axes) == 2


def test_a_sweep_holds_the_last_losses_and_errors_beside_the_best_of_every_rank(make_sweep):
    (sweep,) = calibrate(make_sweep({4: 2.5, 3: 3.0}, rank=2))
    assert sweep.ranks.tolist() == [3, 4] and sweep.losses.tolist() == [3.0, 2.5]
    assert sweep.errors.tolist() == [0.003, 0.003]
    # From the lowest to the highest, and the true rank, which was not trained.
    assert sweep.best_ranks.tolist() == [2, 3, 4] and len(sweep.best) == 3
    assert sweep.floor == make_language(24, 2, seed=0).entropy_rate


def test_languages_of_other_seeds_are_other_languages(make_sweep):
    runs = make_sweep({1: 3.0, 2: 2.5})
    path = runs[0].path / "config.json"
    record = json.loads(path.read_text())
    record["config"]["data"]["language_seed"] += 1
    path.write_text(json.dumps(record))
    sweeps = calibrate([load(run.path) for run in runs])
    assert sorted(sweep.ranks.tolist() for sweep in sweeps) == [[1], [2]]
    first = record["config"]["data"]["language_seed"] - 1
    floors = [make_language(24, 2, seed).entropy_rate for seed in (first, first + 1)]
    assert [sweep.floor for sweep in sweeps] == floors


def test_the_best_of_a_rank_is_at_most_that_of_a_lower_one(monkeypatch):
    """Whatever minima the search ends in: here the third rank's are worse than the second's."""
    ends = {1: 4.0, 2: 3.5, 3: 3.75, 4: 3.0}
    monkeypatch.setattr(
        "bottleneck.report.calibration._descend", lambda language, start: ends[start.shape[2]]
    )
    best = best_losses(make_language(24, 5, seed=0), [1, 2, 3, 4])
    assert best.tolist() == [4.0, 3.5, 3.5, 3.0]


def test_the_slack_is_a_hundredth_of_a_nat():
    assert sweep_of([0.2, 0.0099, 0.001], error=0.0).critical_rank == 4
    assert sweep_of([0.2, 0.0101, 0.001], error=0.0).critical_rank == 5


def test_other_corpora_and_unfinished_runs_are_left_out(make_sweep, make_run):
    runs = make_sweep({1: 3.0, 2: 2.5})
    (runs[0].path / "COMPLETE").unlink()
    other = load(make_run("other"))
    assert [len(sweep.ranks) for sweep in calibrate([*runs, other])] == [1]
    for some in ([other], runs):
        with pytest.raises(NothingToShow, match="known rank"):
            calibration(some)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [6, 12])
def test_trained_heads_turn_at_the_true_rank(rank, tmp_path):
    """The calibration of the whole instrument, by the config that the README shows."""
    from bottleneck.training.loop import train

    runs = []
    for head_rank in range(rank - 2, rank + 3):
        assigned = {"model.head_rank": str(head_rank), "data.cache_dir": str(tmp_path / "cache")}
        config = load_config(f"configs/known_rank.py:{rank}", assigned)
        train(config, tmp_path / f"rank{head_rank}")
        runs.append(load(tmp_path / f"rank{head_rank}"))
    (sweep,) = calibrate(runs)
    excess = sweep.losses - sweep.floor
    assert np.all(np.abs(excess[sweep.ranks >= rank]) <= 0.02)
    below = sweep.ranks < rank
    assert np.all(np.abs(sweep.losses - sweep.best)[below] <= 0.03)
    assert sweep.critical_rank is not None and abs(sweep.critical_rank - rank) <= 1
