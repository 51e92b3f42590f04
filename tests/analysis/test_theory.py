"""The bounds on what a cut of the rank costs: that they hold, that they are needed as they are."""

import numpy as np
import pytest
from scipy.optimize import check_grad, minimize

from bottleneck.analysis import theory
from bottleneck.analysis.drawing import NothingToShow
from bottleneck.analysis.runs import load_run

CLASSES, WIDTH, EXAMPLES = 12, 6, 1500


def plain_losses(weights, inputs, targets):
    """−Σ q ln softmax(W x), written out."""
    exponentials = np.exp(inputs @ weights.T)
    return -np.sum(targets * np.log(exponentials / exponentials.sum(1, keepdims=True)), axis=1)


class Problem:
    """A softmax regression with its exact solution: anisotropic inputs and hard targets."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        scales = np.linspace(2.0, 0.3, WIDTH)
        self.inputs = rng.standard_normal((EXAMPLES, WIDTH)) * scales + 0.3
        logits = self.inputs @ rng.standard_normal((WIDTH, CLASSES))
        labels = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
        self.targets = np.eye(CLASSES)[labels]
        self.second_moment = self.inputs.T @ self.inputs / EXAMPLES
        self.solution = theory.minimiser(self.inputs, self.targets)
        self.rng = rng

    def losses(self, weights):
        return plain_losses(weights, self.inputs, self.targets)

    def gap(self, weights):
        return np.mean(self.losses(weights) - self.losses(self.solution))

    def cut(self, kind, rank):
        """[W* M]_rank M⁻¹ with M the identity (plain) or the symmetric root of C (whitened)."""
        eigenvalues, vectors = np.linalg.eigh(self.second_moment)
        root = vectors * np.sqrt(eigenvalues) @ vectors.T if kind == "whitened" else np.eye(WIDTH)
        left, values, right = np.linalg.svd(self.solution @ root)
        return left[:, :rank] * values[:rank] @ right[:rank] @ np.linalg.inv(root)


@pytest.fixture(scope="module")
def problem():
    return Problem()


def test_losses_are_cross_entropies_and_survive_large_logits(problem):
    weights = problem.rng.standard_normal((CLASSES, WIDTH))
    found = theory.losses(weights, problem.inputs, problem.targets)
    np.testing.assert_allclose(found, problem.losses(weights), rtol=1e-12)
    assert np.isfinite(theory.losses(1e4 * weights, problem.inputs, problem.targets)).all()


def test_minimiser_has_no_gradient_and_is_where_another_method_ends(problem):
    def objective(flat):
        return problem.losses(flat.reshape(CLASSES, WIDTH)).mean()

    def gradient(flat):
        weights = flat.reshape(CLASSES, WIDTH)
        p = np.exp(problem.inputs @ weights.T)
        p /= p.sum(1, keepdims=True)
        return ((p - problem.targets).T @ problem.inputs / EXAMPLES).ravel()

    somewhere = 0.3 * problem.rng.standard_normal(CLASSES * WIDTH)
    assert check_grad(objective, gradient, somewhere) < 1e-6
    assert np.linalg.norm(gradient(problem.solution.ravel())) < 1e-10
    other = minimize(objective, np.zeros(CLASSES * WIDTH), jac=gradient, options={"gtol": 1e-8})
    np.testing.assert_allclose(other.x.reshape(CLASSES, WIDTH), problem.solution, atol=1e-5)
    np.testing.assert_allclose(problem.solution.mean(axis=0), 0, atol=1e-12)


def test_minimiser_of_the_logits_that_made_the_targets_is_their_weights():
    rng = np.random.default_rng(3)
    inputs, weights = rng.standard_normal((200, 4)), rng.standard_normal((7, 4))
    targets = np.exp(inputs @ weights.T)
    targets /= targets.sum(1, keepdims=True)
    found = theory.minimiser(inputs, targets)
    np.testing.assert_allclose(found, weights - weights.mean(axis=0), atol=1e-9)


@pytest.mark.parametrize("kind", ["plain", "whitened"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_bound_holds_at_every_rank(kind, seed):
    problem = Problem(seed)
    lengths = np.linalg.norm(problem.inputs, axis=1)
    for rank in range(1, WIDTH + 1):
        weights = problem.cut(kind, rank)
        change, gap = weights - problem.solution, problem.gap(weights)
        each = np.abs(problem.losses(weights) - problem.losses(problem.solution))
        rounding = 1e-12
        assert np.all(each <= theory.lipschitz_bound(np.linalg.norm(change), lengths) + rounding)
        assert -rounding <= gap <= theory.quadratic_bound(change, problem.second_moment) + rounding
        if rank < WIDTH:  # neither bound is so loose that it would hold without its last term
            assert gap > 0.01 * theory.quadratic_bound(change, problem.second_moment)


def test_bounds_from_singular_values_are_those_of_the_cuts(problem):
    values = np.linalg.svd(problem.solution, compute_uv=False)
    vectors, eigenvalues, _ = np.linalg.svd(problem.second_moment)
    root = vectors * np.sqrt(eigenvalues) @ vectors.T
    whitened_values = np.linalg.svd(problem.solution @ root, compute_uv=False)
    length = np.linalg.norm(problem.inputs, axis=1).mean()
    plain, whitened = theory.plain_bound(values, length), theory.whitened_bound(whitened_values)
    assert len(plain) == len(whitened) == WIDTH and plain[-1] == whitened[-1] == 0
    for rank in range(1, WIDTH):
        change = problem.cut("plain", rank) - problem.solution
        expected = theory.lipschitz_bound(np.linalg.norm(change), length)
        assert plain[rank - 1] == pytest.approx(expected, rel=1e-9)
        change = problem.cut("whitened", rank) - problem.solution
        expected = theory.quadratic_bound(change, problem.second_moment)
        assert whitened[rank - 1] == pytest.approx(expected, rel=1e-9)
        assert problem.gap(problem.cut("plain", rank)) <= plain[rank - 1]
        assert problem.gap(problem.cut("whitened", rank)) <= whitened[rank - 1]


def test_the_quadratic_bound_is_far_below_the_linear_one_near_full_rank(problem):
    values = np.linalg.svd(problem.solution, compute_uv=False)
    length = np.linalg.norm(problem.inputs, axis=1).mean()
    change = problem.cut("plain", WIDTH - 1) - problem.solution
    quadratic = theory.quadratic_bound(change, problem.second_moment)
    assert quadratic < 0.2 * theory.plain_bound(values, length)[WIDTH - 2]


def test_whitened_cut_has_the_least_quadratic_bound_of_any_cut(problem):
    for rank in range(1, WIDTH):
        best = theory.quadratic_bound(
            problem.cut("whitened", rank) - problem.solution, problem.second_moment
        )
        for _ in range(20):
            basis = np.linalg.qr(problem.rng.standard_normal((WIDTH, rank)))[0]
            other = problem.solution @ basis @ basis.T - problem.solution
            assert theory.quadratic_bound(other, problem.second_moment) > best


def test_gap_of_a_perturbation_falls_as_its_square(problem):
    direction = problem.rng.standard_normal((CLASSES, WIDTH))
    direction /= np.linalg.norm(direction)
    sizes = np.array([1e-1, 1e-2, 1e-3])
    gaps = np.array([problem.gap(problem.solution + size * direction) for size in sizes])
    assert np.all(gaps > 0)
    slopes = np.diff(np.log(gaps)) / np.diff(np.log(sizes))
    np.testing.assert_allclose(slopes, 2, atol=0.02)
    bounds = [theory.quadratic_bound(s * direction, problem.second_moment) for s in sizes]
    assert np.all(gaps <= bounds)


def test_gap_away_from_the_minimum_falls_only_linearly(problem):
    """So it is the minimum that makes it a square."""
    start = problem.solution + 0.3
    start[0] += 0.5
    direction = start - problem.solution
    sizes = np.array([1e-2, 1e-3])
    change = [np.mean(problem.losses(start + s * direction) - problem.losses(start)) for s in sizes]
    assert change[0] / change[1] == pytest.approx(10, rel=0.05)


def test_quadratic_bound_is_reached_by_two_equally_likely_classes():
    inputs, targets = np.ones((2, 1)), np.eye(2)
    assert np.all(np.abs(theory.minimiser(inputs, targets)) < 1e-12)
    change = 1e-3 * np.array([[1.0], [-1.0]])
    gap = plain_losses(change, inputs, targets).mean() - np.log(2)
    assert theory.quadratic_bound(change, np.ones((1, 1))) == pytest.approx(gap, rel=1e-5)


def test_quadratic_bound_ignores_what_the_softmax_ignores(problem):
    change = problem.rng.standard_normal((CLASSES, WIDTH))
    shifted = change + problem.rng.standard_normal(WIDTH)
    bound = theory.quadratic_bound(change, problem.second_moment)
    assert theory.quadratic_bound(shifted, problem.second_moment) == pytest.approx(bound)


def test_lipschitz_bound_is_reached_where_the_wrong_class_is_certain():
    inputs, targets = np.array([[2.0]]), np.array([[1.0, 0.0]])
    certain = np.array([[-20.0], [20.0]])
    change = 0.1 * np.array([[-1.0], [1.0]])
    difference = plain_losses(certain + change, inputs, targets) - plain_losses(
        certain, inputs, targets
    )
    bound = theory.lipschitz_bound(np.linalg.norm(change), np.array([2.0]))
    np.testing.assert_allclose(difference, bound, rtol=1e-9)


def test_first_order_term_is_the_corrected_one_and_not_the_printed_one(problem):
    weights = problem.solution + 0.1 * problem.rng.standard_normal((CLASSES, WIDTH))
    direction = problem.rng.standard_normal((CLASSES, WIDTH))
    size = 1e-5
    ahead, behind = (problem.losses(weights + s * direction) for s in (size, -size))
    slopes = (ahead - behind) / (2 * size)
    found = theory.first_order_change(weights, direction, problem.inputs, problem.targets)
    np.testing.assert_allclose(found, slopes, atol=1e-8)
    moved = problem.inputs @ direction.T
    printed = np.exp(moved).sum(1) / np.exp(problem.inputs @ weights.T).sum(1)
    printed -= np.sum(problem.targets * moved, axis=1)
    assert np.abs(printed - slopes).mean() > 0.1


def test_first_order_change_vanishes_on_average_at_the_minimum(problem):
    direction = problem.rng.standard_normal((CLASSES, WIDTH))
    change = theory.first_order_change(problem.solution, direction, problem.inputs, problem.targets)
    assert abs(change.mean()) < 1e-9 and np.abs(change).mean() > 0.1


def test_tails_keep_their_digits_where_the_spectrum_falls_steeply():
    values = 10.0 ** -np.arange(0, 12, 2)
    expected = [sum(float(v) ** 2 for v in values[r:][::-1]) for r in range(1, 7)]
    np.testing.assert_allclose(theory.tails(values), expected, rtol=1e-14)


def test_figure_draws_the_bounds_beside_the_measured_gaps(make_run):
    runs = [
        load_run(make_run(f"rank{rank or 64}", head_rank=rank, steps=100)) for rank in (16, None)
    ]
    plain_panel, whitened_panel = theory.against_measurement(runs).axes
    for run, stop in zip(runs, (16, 64), strict=True):
        probe = run.probe()
        (drawn,) = (line for line in plain_panel.lines if len(line.get_xdata()) == stop - 1)
        values, length = probe["singular_values"], probe["mean_hidden_norm"]
        expected = [length * np.sqrt(2 * np.sum(values[r:] ** 2)) for r in range(1, stop)]
        np.testing.assert_allclose(drawn.get_ydata(), expected, rtol=1e-9)
        (drawn,) = (line for line in whitened_panel.lines if len(line.get_xdata()) == stop - 1)
        values = probe["whitened_singular_values"]
        expected = [np.sum(values[r:] ** 2) / 4 for r in range(1, stop)]
        np.testing.assert_allclose(drawn.get_ydata(), expected, rtol=1e-9)
    measured = whitened_panel.containers[-1].lines[0]
    clear = (probe["ranks"] < 64) & (probe["gap_whitened"] > 2 * probe["gap_whitened_se"])
    np.testing.assert_array_equal(measured.get_xdata(), probe["ranks"][clear])
    np.testing.assert_array_equal(measured.get_ydata(), probe["gap_whitened"][clear])


def test_figure_is_left_out_where_probes_do_not_hold_what_the_bounds_need(make_run):
    folder = make_run(steps=50)
    for path in (folder / "probes").iterdir():
        with np.load(path) as found:
            np.savez(path, **{k: v for k, v in found.items() if k != "whitened_singular_values"})
    with pytest.raises(NothingToShow, match="hidden states"):
        theory.against_measurement([load_run(folder)])
