"""The best full-rank head of frozen features: a convex problem, so there is one answer.

Multinomial logistic regression with the same penalty as `head_training`, solved by L-BFGS in the
coordinates in which the hidden states have unit second moment, where its Hessian is as even as the
features allow. D: hidden width; V: vocabulary; C: E[h hᵀ]; W: the head [V, D].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

from bottleneck.frozen.heads import Training
from bottleneck.model.head import HeadFactors

MOST_ITERATIONS = 1000

_BLOCK = 2**16  # tokens on the device at a time
_FLOOR = 1e-8  # of C's eigenvalues, over the largest


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
    """The head of least mean cross-entropy and penalty over these tokens.

    Ends where an iteration gains less than `tolerance` of the objective's size.

    Args:
        hidden_NxD, targets_N: any type and a memory map will do; read a block at a time.
        watch: called after every iteration with the head [V, D].
    """
    moment = np.asarray(training.moment, np.float64)
    eigenvalues, vectors = np.linalg.eigh(moment)
    scales = np.sqrt(np.maximum(eigenvalues, _FLOOR * eigenvalues[-1]))
    root, inverse = vectors * scales @ vectors.T, vectors / scales @ vectors.T
    whiten = jnp.float32(inverse)
    shape = start_VxD.shape
    # In whitened coordinates the penalty is a plain sum of squares.
    loss_alone = dataclasses.replace(training, ridge=0.0)

    def block_loss(rows: jax.Array, hidden: jax.Array, targets: jax.Array) -> jax.Array:
        white = jnp.matmul(hidden.astype(jnp.float32), whiten, precision="highest")
        return loss_alone.objective(HeadFactors(rows, None), white, targets) * len(targets)

    value_and_gradient = jax.jit(jax.value_and_grad(block_loss))

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        rows = jnp.float32(flat.reshape(shape))
        total, gradient = 0.0, np.zeros(shape)
        for hidden, targets in _blocks(hidden_NxD, targets_N):
            value, of_rows = value_and_gradient(rows, hidden, targets)
            total += float(value)
            gradient += np.asarray(of_rows)
        whitened = flat.reshape(shape)
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


def _blocks(hidden: np.ndarray, targets: np.ndarray) -> Iterator[tuple[jax.Array, jax.Array]]:
    for start in range(0, len(targets), _BLOCK):
        rows = slice(start, start + _BLOCK)
        yield jnp.asarray(hidden[rows], jnp.float32), jnp.asarray(targets[rows])
