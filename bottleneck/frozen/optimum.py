"""The best full-rank head of frozen features, the solution of a convex problem.

The problem is multinomial logistic regression with the penalty of `heads.Training`. L-BFGS solves
it in whitened coordinates, which improve the condition of its Hessian. D: hidden width; V:
vocabulary; C: E[h hᵀ]; W: the head [V, D].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

from bottleneck.frozen.heads import Training
from bottleneck.model.head import HeadFactors
from bottleneck.probes import truncation

MOST_ITERATIONS = 1000

_BLOCK = 2**16  # tokens on the device at a time
_FLOOR = 1e-8  # for float32 products with the inverse root of C


@dataclass(frozen=True)
class ConvexOptimum:
    """rows: float32 [V, D], the minimiser; objective: mean training loss and penalty, nats."""

    rows: np.ndarray
    objective: float
    iterations: int
    is_converged: bool


def convex_optimum(
    training: Training,
    hidden_NxD: np.ndarray,
    targets_N: np.ndarray,
    start_VxD: np.ndarray,
    *,
    tolerance: float = 1e-6,
    watch: Callable[[np.ndarray], None] | None = None,
) -> ConvexOptimum:
    """Returns the head that minimises the mean cross-entropy plus the penalty over these tokens.

    It stops at a relative gain below `tolerance` in one iteration.

    Args:
        hidden_NxD, targets_N: arrays or memory maps; read a block at a time.
        watch: called with the head [V, D] after every iteration.
    """
    root, inverse = truncation.square_roots(np.asarray(training.moment), _FLOOR)
    whiten = jnp.float32(inverse)
    shape = start_VxD.shape
    # Whitening turns the penalty into a sum of squares.
    loss_alone = dataclasses.replace(training, ridge=0.0)

    def block_loss(rows: jax.Array, hidden: jax.Array, targets: jax.Array) -> jax.Array:
        white = jnp.matmul(hidden.astype(jnp.float32), whiten, precision="highest")
        return loss_alone.objective(HeadFactors(rows, None), white, targets) * len(targets)

    value_and_gradient = jax.jit(jax.value_and_grad(block_loss))

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        whitened = flat.reshape(shape)
        rows = jnp.float32(whitened)
        total, gradient = 0.0, np.zeros(shape)
        for first in range(0, len(targets_N), _BLOCK):
            tokens = slice(first, first + _BLOCK)
            hidden = jnp.asarray(hidden_NxD[tokens], jnp.float32)
            value, of_rows = value_and_gradient(rows, hidden, jnp.asarray(targets_N[tokens]))
            total += float(value)
            gradient += np.asarray(of_rows)
        total = total / len(targets_N) + training.ridge / 2 * float(np.sum(whitened**2))
        gradient = gradient / len(targets_N) + training.ridge * whitened
        return total, gradient.reshape(-1)

    def after_iteration(intermediate_result: object) -> None:
        if watch is not None:
            watch(intermediate_result.x.reshape(shape) @ inverse)  # type: ignore[attr-defined]

    result = minimize(
        objective,
        (np.asarray(start_VxD, np.float64) @ root).reshape(-1),
        jac=True,
        method="L-BFGS-B",
        callback=after_iteration,
        options={"maxiter": MOST_ITERATIONS, "ftol": tolerance, "gtol": 0.0, "maxcor": 20},
    )
    rows = (result.x.reshape(shape) @ inverse).astype(np.float32)
    return ConvexOptimum(rows, float(result.fun), int(result.nit), bool(result.status == 0))
