"""The bounds on what a cut of the rank costs: that they hold, that they are needed as they are."""

import numpy as np
import pytest
from scipy.optimize import check_grad, minimize
from scipy.special import log_softmax, logsumexp, softmax

from bottleneck.probes import bounds

_GRADIENT_NORM = 1e-10  # at which W* counts as exact
_MOST_NEWTON_STEPS = 100  # a handful is usual
CLASSES, WIDTH, EXAMPLES = 12, 6, 1500


def losses(weights_VxD: np.ndarray, inputs_nxD: np.ndarray, targets_nxV: np.ndarray) -> np.ndarray:
    """L(W, x, q) of each example: float64 [n], nats."""
    logits_nxV = inputs_nxD @ weights_VxD.T
    return logsumexp(logits_nxV, axis=1) - np.sum(targets_nxV * logits_nxV, axis=1)


def minimiser(inputs_nxD: np.ndarray, targets_nxV: np.ndarray) -> np.ndarray:
    """W*: float64 [V, D], centred, where the gradient of the mean loss has a norm below 1e-10.

    The loss is convex, and strictly so in centred weights where the inputs span their space:
    Newton's method, which costs O(n·(V·D)²) a step.

    Args:
        inputs_nxD: x, of full column rank.
        targets_nxV: q; rows sum to 1. Where the examples of a class can be told from all others,
            the minimum is infinitely far, and what is returned is where the gradient has vanished.
    """
    n, n_classes, width = *targets_nxV.shape, inputs_nxD.shape[1]
    # The loss ignores 1·vᵀ. This makes such directions cost something, which keeps W centred.
    gauge = np.kron(np.full((n_classes, n_classes), 1 / n_classes), inputs_nxD.T @ inputs_nxD / n)
    weights = np.zeros((n_classes, width))
    for _ in range(_MOST_NEWTON_STEPS):
        p_nxV = softmax(inputs_nxD @ weights.T, axis=1)
        gradient = (p_nxV - targets_nxV).T @ inputs_nxD / n
        if np.linalg.norm(gradient) < _GRADIENT_NORM:
            return weights
        # Σ_n (diag(p) − p pᵀ) ⊗ x xᵀ, its first part a block for each class.
        mixed = (p_nxV[:, :, None] * inputs_nxD[:, None, :]).reshape(n, -1)
        hessian = gauge - mixed.T @ mixed / n
        for v in range(n_classes):
            block = slice(v * width, (v + 1) * width)
            hessian[block, block] += (p_nxV[:, v, None] * inputs_nxD).T @ inputs_nxD / n
        step = np.linalg.solve(hessian, gradient.ravel()).reshape(weights.shape)
        before, scale = losses(weights, inputs_nxD, targets_nxV).mean(), 1.0
        while losses(weights - scale * step, inputs_nxD, targets_nxV).mean() > before + 1e-14:
            scale /= 2
        weights = weights - scale * step
    raise ValueError(f"no minimum was reached in {_MOST_NEWTON_STEPS} steps of Newton's method")


def first_order_change(
    weights_VxD: np.ndarray,
    direction_VxD: np.ndarray,
    inputs_nxD: np.ndarray,
    targets_nxV: np.ndarray,
) -> np.ndarray:
    """The derivative of L(W + ε·M, x, q) by ε at 0: float64 [n], Σ_j p_j (M x)_j − q·M x.

    Source: Godey et al. 2024, proof of lemma 5.1, corrected: what is printed there for the first
    sum is Σ_j exp((M x)_j) / Σ_j exp((W x)_j).
    """
    p_nxV = np.exp(log_softmax(inputs_nxD @ weights_VxD.T, axis=1))
    return np.sum((p_nxV - targets_nxV) * (inputs_nxD @ direction_VxD.T), axis=1)


def quadratic_bound(change_VxD: np.ndarray, second_moment_DxD: np.ndarray) -> float:
    """¼·tr(ΔW C ΔWᵀ) ≥ ℓ(W) − ℓ(W*): no first-order term at a minimum, and diag(p) − p pᵀ ⪯ ½·I.

    What ΔW has in common over all classes changes no loss, so it is taken out first.
    """
    centred = change_VxD - change_VxD.mean(axis=0)
    return float(np.sum(centred @ second_moment_DxD * centred)) / 4


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
        self.solution = minimiser(self.inputs, self.targets)
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
    found = losses(weights, problem.inputs, problem.targets)
    np.testing.assert_allclose(found, problem.losses(weights), rtol=1e-12)
    assert np.isfinite(losses(1e4 * weights, problem.inputs, problem.targets)).all()


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
    found = minimiser(inputs, targets)
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
        assert np.all(each <= bounds.lipschitz_bound(np.linalg.norm(change), lengths) + rounding)
        assert -rounding <= gap <= quadratic_bound(change, problem.second_moment) + rounding
        if rank < WIDTH:  # neither bound is so loose that it would hold without its last term
            assert gap > 0.01 * quadratic_bound(change, problem.second_moment)


def test_bounds_from_singular_values_are_those_of_the_cuts(problem):
    values = np.linalg.svd(problem.solution, compute_uv=False)
    vectors, eigenvalues, _ = np.linalg.svd(problem.second_moment)
    root = vectors * np.sqrt(eigenvalues) @ vectors.T
    whitened_values = np.linalg.svd(problem.solution @ root, compute_uv=False)
    length = np.linalg.norm(problem.inputs, axis=1).mean()
    plain, whitened = bounds.plain_bound(values, length), bounds.whitened_bound(whitened_values)
    assert len(plain) == len(whitened) == WIDTH and plain[-1] == whitened[-1] == 0
    for rank in range(1, WIDTH):
        change = problem.cut("plain", rank) - problem.solution
        expected = bounds.lipschitz_bound(np.linalg.norm(change), length)
        assert plain[rank - 1] == pytest.approx(expected, rel=1e-9)
        change = problem.cut("whitened", rank) - problem.solution
        expected = quadratic_bound(change, problem.second_moment)
        assert whitened[rank - 1] == pytest.approx(expected, rel=1e-9)
        assert problem.gap(problem.cut("plain", rank)) <= plain[rank - 1]
        assert problem.gap(problem.cut("whitened", rank)) <= whitened[rank - 1]


def test_the_quadratic_bound_is_far_below_the_linear_one_near_full_rank(problem):
    values = np.linalg.svd(problem.solution, compute_uv=False)
    length = np.linalg.norm(problem.inputs, axis=1).mean()
    change = problem.cut("plain", WIDTH - 1) - problem.solution
    quadratic = quadratic_bound(change, problem.second_moment)
    assert quadratic < 0.2 * bounds.plain_bound(values, length)[WIDTH - 2]


def test_whitened_cut_has_the_least_quadratic_bound_of_any_cut(problem):
    for rank in range(1, WIDTH):
        best = quadratic_bound(
            problem.cut("whitened", rank) - problem.solution, problem.second_moment
        )
        for _ in range(20):
            basis = np.linalg.qr(problem.rng.standard_normal((WIDTH, rank)))[0]
            other = problem.solution @ basis @ basis.T - problem.solution
            assert quadratic_bound(other, problem.second_moment) > best


def test_gap_of_a_perturbation_falls_as_its_square(problem):
    direction = problem.rng.standard_normal((CLASSES, WIDTH))
    direction /= np.linalg.norm(direction)
    sizes = np.array([1e-1, 1e-2, 1e-3])
    gaps = np.array([problem.gap(problem.solution + size * direction) for size in sizes])
    assert np.all(gaps > 0)
    slopes = np.diff(np.log(gaps)) / np.diff(np.log(sizes))
    np.testing.assert_allclose(slopes, 2, atol=0.02)
    ceilings = [quadratic_bound(s * direction, problem.second_moment) for s in sizes]
    assert np.all(gaps <= ceilings)


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
    assert np.all(np.abs(minimiser(inputs, targets)) < 1e-12)
    change = 1e-3 * np.array([[1.0], [-1.0]])
    gap = plain_losses(change, inputs, targets).mean() - np.log(2)
    assert quadratic_bound(change, np.ones((1, 1))) == pytest.approx(gap, rel=1e-5)


def test_quadratic_bound_ignores_what_the_softmax_ignores(problem):
    change = problem.rng.standard_normal((CLASSES, WIDTH))
    shifted = change + problem.rng.standard_normal(WIDTH)
    bound = quadratic_bound(change, problem.second_moment)
    assert quadratic_bound(shifted, problem.second_moment) == pytest.approx(bound)


def test_lipschitz_bound_is_reached_where_the_wrong_class_is_certain():
    inputs, targets = np.array([[2.0]]), np.array([[1.0, 0.0]])
    certain = np.array([[-20.0], [20.0]])
    change = 0.1 * np.array([[-1.0], [1.0]])
    difference = plain_losses(certain + change, inputs, targets) - plain_losses(
        certain, inputs, targets
    )
    bound = bounds.lipschitz_bound(np.linalg.norm(change), np.array([2.0]))
    np.testing.assert_allclose(difference, bound, rtol=1e-9)


def test_first_order_term_is_the_corrected_one_and_not_the_printed_one(problem):
    weights = problem.solution + 0.1 * problem.rng.standard_normal((CLASSES, WIDTH))
    direction = problem.rng.standard_normal((CLASSES, WIDTH))
    size = 1e-5
    ahead, behind = (problem.losses(weights + s * direction) for s in (size, -size))
    slopes = (ahead - behind) / (2 * size)
    found = first_order_change(weights, direction, problem.inputs, problem.targets)
    np.testing.assert_allclose(found, slopes, atol=1e-8)
    moved = problem.inputs @ direction.T
    printed = np.exp(moved).sum(1) / np.exp(problem.inputs @ weights.T).sum(1)
    printed -= np.sum(problem.targets * moved, axis=1)
    assert np.abs(printed - slopes).mean() > 0.1


def test_first_order_change_vanishes_on_average_at_the_minimum(problem):
    direction = problem.rng.standard_normal((CLASSES, WIDTH))
    change = first_order_change(problem.solution, direction, problem.inputs, problem.targets)
    assert abs(change.mean()) < 1e-9 and np.abs(change).mean() > 0.1


def test_tails_keep_their_digits_where_the_spectrum_falls_steeply():
    values = 10.0 ** -np.arange(0, 12, 2)
    expected = [sum(float(v) ** 2 for v in values[r:][::-1]) for r in range(1, 7)]
    np.testing.assert_allclose(bounds.tails(values), expected, rtol=1e-14)
