"""Heads trained on frozen features whose true head is known, against closed forms and scipy."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax

from bottleneck.commands.frozen_heads import main
from bottleneck.errors import UserError
from bottleneck.frozen import figures as frozen_head_figures
from bottleneck.frozen import study as frozen_heads
from bottleneck.frozen.features import FeatureManifest, filling, load
from bottleneck.frozen.figures import load_results, rank_of_gap
from bottleneck.frozen.heads import BatchOrder, Heads, Training, schedule, starting_heads
from bottleneck.frozen.optimum import convex_optimum
from bottleneck.frozen.study import FrozenPlan, FrozenStudy
from bottleneck.laws.rank import fit_rank
from bottleneck.model.head import HeadFactors
from bottleneck.probes import truncation
from bottleneck.probes.gap import rank_sweep
from bottleneck.storage import json_files

pytestmark = pytest.mark.usefixtures("optimized")

VOCAB, WIDTH = 48, 8
PLAN = FrozenPlan(
    features="made up, abc",
    ranks=(1, 2, 4, WIDTH),
    starts=("whitened", "normal"),
    learning_rates=(3e-3, 1e-2, 5e-2),
    steps=1000,
    search_steps=100,
    batch_tokens=1024,
    logit_sd=5.0,
    loss_chunk=256,
    seed=0,
)


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """Targets drawn from a head that the model's own is a noisy copy of."""
    rng = np.random.default_rng(0)
    true = rng.standard_normal((VOCAB, WIDTH)) * np.geomspace(1.5, 0.3, WIDTH)
    true += rng.standard_normal((VOCAB, 1)) * 0.3
    own = jnp.float32(true + 0.2 * rng.standard_normal(true.shape))
    tokens = {"train": 60_000, "validation": 10_000}
    manifest = FeatureManifest("made up", 2, 2, WIDTH, VOCAB, 16, "float32", "abc", tokens, 0.0)
    folder = tmp_path_factory.mktemp("set")
    with filling(folder, manifest, HeadFactors(own, None)) as writer:
        for part, n in tokens.items():
            hidden = rng.standard_normal((n, WIDTH)) * np.geomspace(1.5, 0.5, WIDTH) + 0.2
            targets = np.argmax(hidden @ true.T + rng.gumbel(size=(n, VOCAB)), axis=-1)
            writer.begin(part, np.int32(targets), np.int32(np.arange(n) // 50))
            writer.append(part, np.float32(hidden), np.ones((3, WIDTH + 3)))
    return load(folder)


@pytest.fixture(scope="module")
def folder(features, tmp_path_factory):
    """A finished study."""
    path = tmp_path_factory.mktemp("study") / "frozen_heads"
    FrozenStudy(features, PLAN, path).run()
    return path


def training(features, ridge=1e-3):
    hidden = np.float64(features.part("train").hidden)
    return Training(256, jnp.float32(hidden.T @ hidden / len(hidden)), ridge)


def test_the_penalty_is_half_the_ridge_times_the_mean_square_of_the_logits(features):
    hidden = np.float64(features.part("train").hidden)
    rng = np.random.default_rng(1)
    rows, basis = rng.standard_normal((VOCAB, 3)), rng.standard_normal((3, WIDTH))
    exact = 1e-3 / 2 * np.mean(np.sum((hidden @ (rows @ basis).T) ** 2, axis=1))
    made = training(features)
    factored = made.penalty(HeadFactors(jnp.float32(rows), jnp.float32(basis)))
    full = made.penalty(HeadFactors(jnp.float32(rows @ basis), None))
    assert factored == pytest.approx(exact, rel=1e-5) and full == pytest.approx(exact, rel=1e-5)


def test_the_convex_optimum_is_that_of_scipy_in_float64(features):
    train = features.part("train")
    hidden, targets = train.hidden[:1000], train.targets[:1000]
    made = training(features)
    moment = np.float64(made.moment)

    def loss(flat):
        W = flat.reshape(VOCAB, WIDTH)
        log_p = log_softmax(hidden @ W.T, axis=1)
        error = np.exp(log_p)
        error[np.arange(len(targets)), targets] -= 1
        penalty = made.ridge / 2 * np.sum(W.T @ W * moment)
        value = -np.mean(log_p[np.arange(len(targets)), targets]) + penalty
        return value, (error.T @ hidden / len(targets) + made.ridge * W @ moment).ravel()

    exact = minimize(loss, np.zeros(VOCAB * WIDTH), jac=True, method="BFGS", options={"gtol": 1e-9})
    found = convex_optimum(made, hidden, targets, np.zeros((VOCAB, WIDTH)), tolerance=1e-9)
    assert found.is_converged
    assert found.objective == pytest.approx(exact.fun, abs=2e-6)
    assert loss(np.float64(found.rows).ravel())[0] == pytest.approx(exact.fun, abs=2e-6)


def test_heads_trained_together_are_those_trained_alone(features):
    made, key = training(features), jax.random.key(0)
    own = features.head
    starts = [
        jax.tree.map(np.asarray, starting_heads("normal", rank, own, None, 2, key))
        for rank in (1, 3)
    ]
    rates = [jnp.broadcast_to(jnp.float32([1e-3, 1e-2]), (4, 2))] * 2
    rows = np.stack([BatchOrder(60_000, 512, 0).rows(step) for step in range(4)])
    train = features.part("train")
    batch = (jnp.asarray(train.hidden[rows]), jnp.asarray(train.targets[rows]))
    together = made.steps([made.start(_on_device(heads)) for heads in starts], rates, *batch)
    for i, heads in enumerate(starts):
        for j in range(2):
            one = _on_device(Heads(*(array[j : j + 1] for array in heads)))
            (alone,) = made.steps([made.start(one)], [rates[i][:, j : j + 1]], *batch)
            for found, exact in zip(together[i].heads, alone.heads, strict=True):
                np.testing.assert_allclose(found[j], exact[0], atol=2e-6)
            assert np.abs(together[i].heads.rows[j] - heads.rows[j]).max() > 1e-3


def _on_device(heads):
    """A copy, as training takes its arrays for its own."""
    return jax.tree.map(jnp.array, heads)


@pytest.mark.parametrize("start", ["plain", "whitened"])
def test_a_head_that_starts_from_the_models_own_is_its_truncation(start, features):
    validation = features.part("validation")
    hidden = np.float64(features.part("train").hidden)
    moment = hidden.T @ hidden / len(hidden)
    W = np.float64(features.head.rows)
    cut = truncation.plain(W) if start == "plain" else truncation.whitened(W, moment)
    for rank in (1, 3, WIDTH):
        heads = starting_heads(start, rank, features.head, cut, 2, jax.random.key(0))
        exact = (W @ cut.decode[:, :rank]) @ cut.encode[:, :rank].T
        product = np.float64(heads.rows[1]) @ np.float64(heads.basis[1])
        np.testing.assert_allclose(product, exact, atol=1e-5)
        sizes = (np.sqrt(np.mean(heads.rows[0] ** 2, 0)), np.sqrt(np.mean(heads.basis[0] ** 2, 1)))
        np.testing.assert_allclose(*sizes, rtol=1e-4)
    sweep = rank_sweep(
        features.head,
        jnp.asarray(validation.hidden)[None],
        jnp.asarray(validation.targets)[None],
        (3,),
    )
    if start == "plain":
        heads = starting_heads(start, 3, features.head, cut, 1, jax.random.key(0))
        losses, _ = training(features).evaluate(heads, validation.hidden, validation.targets)
        assert np.mean(losses) == pytest.approx(sweep.loss[0], abs=1e-5)


def test_evaluation_is_float64_cross_entropy_and_accuracy(features):
    validation = features.part("validation")
    heads = Heads(features.head.rows[None], jnp.eye(WIDTH)[None])
    losses, rights = training(features).evaluate(heads, validation.hidden, validation.targets)
    log_p = log_softmax(np.float64(validation.hidden) @ np.float64(features.head.rows).T, axis=1)
    exact = -log_p[np.arange(len(log_p)), validation.targets]
    np.testing.assert_allclose(losses[0], exact, atol=2e-5)
    assert np.mean(rights) == pytest.approx(
        np.mean(log_p.argmax(1) == validation.targets), abs=1e-3
    )


def test_every_token_is_seen_once_an_epoch_in_an_order_of_its_own():
    order = BatchOrder(640, 128, seed=3)
    epochs = [np.concatenate([order.rows(s) for s in range(5 * e, 5 * e + 5)]) for e in (0, 1)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(640))
    assert (epochs[0] != epochs[1]).any()
    np.testing.assert_array_equal(BatchOrder(640, 128, seed=3).rows(7), order.rows(7))


def test_the_schedule_warms_up_and_ends_at_a_hundredth():
    rates = schedule(1000)
    assert rates.argmax() == 10 and rates.max() == pytest.approx(1)
    assert rates[0] < 0.2 and rates[-1] == pytest.approx(0.01, rel=1e-3)


def cells(folder, start):
    return {c["rank"]: c for c in load_results(folder)["cells"] if c["start"] == start}


def test_no_head_is_worse_than_the_truncation_that_it_began_as(folder):
    for cell in cells(folder, "whitened").values():
        assert cell["loss"] <= cell["start_loss"] + 1e-6


def test_losses_fall_with_rank_and_accuracy_rises(folder):
    for start in PLAN.starts:
        some = cells(folder, start)
        losses = np.array([some[rank]["loss"] for rank in PLAN.ranks])
        errors = np.array([some[rank]["gap_se"] for rank in PLAN.ranks])
        assert (np.diff(losses) < 2 * (errors[1:] + errors[:-1])).all()
        assert losses[0] - losses[-1] > 0.3
        assert some[WIDTH]["accuracy"] > some[1]["accuracy"]


def test_at_full_rank_training_reaches_the_convex_optimum(folder):
    record = load_results(folder)
    assert record["optimum_is_converged"] and record["optimum"] < record["own"]
    for start in PLAN.starts:
        full = cells(folder, start)[WIDTH]
        assert full["loss"] == pytest.approx(record["optimum_stopped"], abs=0.005)
        assert full["gap"] == pytest.approx(full["loss"] - record["optimum_stopped"], abs=1e-6)


def test_random_starts_reach_the_whitened_ones(folder):
    random, whitened = cells(folder, "normal"), cells(folder, "whitened")
    for rank in PLAN.ranks:
        assert random[rank]["loss"] == pytest.approx(whitened[rank]["loss"], abs=0.02)


class Killed(Exception):
    pass


def test_a_killed_study_goes_on_to_the_same_results(features, tmp_path, monkeypatch):
    short = dataclasses.replace(PLAN, ranks=(2,), starts=("normal",), steps=60, search_steps=20)
    whole = FrozenStudy(features, short, tmp_path / "whole").run()
    steps, calls = Training.steps, []

    def counted(self, *arguments):
        calls.append(1)
        if len(calls) == 5:  # two of the search, two of the training
            raise Killed
        return steps(self, *arguments)

    monkeypatch.setattr(Training, "steps", counted)
    with pytest.raises(Killed):
        FrozenStudy(features, short, tmp_path / "killed").run()
    monkeypatch.setattr(frozen_heads, "convex_optimum", None)  # it is there already
    assert FrozenStudy(features, short, tmp_path / "killed").run() == whole
    assert len(calls) == 5 + 4
    assert FrozenStudy(features, short, tmp_path / "killed").run() == whole
    with pytest.raises(UserError, match="holds a study with steps=60; now steps=70: choose"):
        FrozenStudy(features, dataclasses.replace(short, steps=70), tmp_path / "killed")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranks": (1, 9)}, r"--ranks=\(1, 9\) is not allowed; it must be between 1 and 8"),
        ({"starts": ("whitend",)}, "must be among normal, matched, plain, whitened"),
        ({"learning_rates": (0.0,)}, "--learning_rates"),
        ({"logit_sd": -1.0}, "--logit_sd"),
        ({"starts": ("normal", "normal")}, "each named once"),
        ({"search_steps": -5}, "--search_steps=-5 is not allowed; it must be at least 1"),
        ({"loss_chunk": 0}, "--loss_chunk=0"),
        ({"seed": -1}, "--seed=-1"),
    ],
)
def test_a_wrong_value_is_one_line(changes, message, features, tmp_path):
    with pytest.raises(UserError, match=message):
        FrozenStudy(features, dataclasses.replace(PLAN, **changes), tmp_path / "study")


def test_the_rank_law_finds_its_constants_and_intervals_hold_them():
    ranks = np.array([4, 8, 16, 32, 64, 128])
    exact = 2.3 + 5 * ranks**-0.6
    law = fit_rank(ranks, exact)
    assert law.floor == pytest.approx(2.3, abs=0.05) and law.exponent == pytest.approx(
        0.6, abs=0.01
    )
    assert law.residual < 0.01
    rng = np.random.default_rng(0)
    document_losses = (
        exact + rng.standard_normal((400, 1)) * 0.3 + 0.2 * rng.standard_normal((400, 6))
    )
    noisy = fit_rank(ranks, document_losses.mean(0), document_losses, np.ones(400))
    low, high = noisy.intervals["exponent"]
    assert low < 0.6 < high and high - low < 0.2


def test_the_rank_at_which_a_gap_is_passed_lies_between_measured_ranks():
    ranks, gaps = np.array([1, 4, 16, 64]), np.array([1.0, 0.5, 0.1, 0.0])
    assert rank_of_gap(ranks, gaps, 0.3) == pytest.approx(8)  # half way from 4 to 16 in log r
    assert rank_of_gap(ranks, gaps, 0.1) == pytest.approx(16)
    assert rank_of_gap(ranks, gaps, 2.0) is None
    bumpy = np.array([1.0, 0.2, 0.4, 0.0])  # for good, not for the first time
    assert rank_of_gap(ranks, bumpy, 0.3) == pytest.approx(16 * 4**0.25)


def test_the_command_finds_the_study_done_and_draws_it(features, folder, capsys):
    argv = [str(features.path), f"--output={folder}", "--ranks=1,2,4", "--steps=1000"]
    argv += ["--batch_tokens=1024", "--learning_rates=3e-3,1e-2,5e-2"]
    plan = json_files.read(folder / "plan.json", "")
    assert plan == json.loads(json.dumps(dataclasses.asdict(PLAN)))
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert (
        "whitened: L(r) = L∞ + c·r^−p" in said
        and "0.1 nat below rank" in said
        and "0.01 nat" in said
    )
    assert (folder / "frozen_heads.png").stat().st_size > 10_000
    assert set(frozen_head_figures.rank_laws(folder)) == set(PLAN.starts)


def test_a_set_without_training_tokens_is_refused(features, tmp_path):
    none = dataclasses.replace(features.manifest, tokens={"train": 0, "validation": 10_000})
    with pytest.raises(UserError, match="has no train tokens"):
        FrozenStudy(dataclasses.replace(features, manifest=none), PLAN, tmp_path / "study")
    assert load(features.path).manifest == features.manifest


@pytest.mark.parametrize("name", ["search.json", "optimum.npz", "plan.json"])
def test_a_study_does_not_go_on_from_a_damaged_stage(features, folder, tmp_path, name):
    again = tmp_path / "study"
    shutil.copytree(folder, again)
    (again / "results.json").unlink()
    content = bytearray((again / name).read_bytes())
    content[len(content) // 3] ^= 4
    (again / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} is (damaged|not a whole).*makes it again"):
        FrozenStudy(features, PLAN, again).run()
