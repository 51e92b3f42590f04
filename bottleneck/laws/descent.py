"""Minima of the Huber loss of log-residuals, from thousands of starts and resamples at once.

Takes damped Newton steps in float64, batched in jax on the CPU; the rest of the program keeps its
32-bit arithmetic. The loss is F(θ) = Σ_i w_i·Huber_δ(logsumexp_k (M_i θ + o_i)_k − log L_i). It is
a sum because a mean makes optimisers with absolute tolerances stop too early (Besiroglu et al.
2024). n: points; K: terms of the law; P: free constants; S: starts.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

_LANES = 64  # starts that descend together: their arrays stay in a core's cache
_POINTS = 64  # points are padded to a multiple of this, so that few programs are compiled
_FIRST_DAMPING = 1e-2
_LARGEST_DAMPING = 1e12  # even the shortest step fails to descend: this is the minimum, to rounding
_LEAST_DECREASE = 1e-13  # of F, predicted: θ then has half of its digits, and F determines no more
_FARTHEST = 100.0  # |θ|: a coefficient of e^-100 is zero


class Minima(NamedTuple):
    """The ends of the descents, in the order of their starts."""

    theta: np.ndarray  # float64 [S, P]
    objective: np.ndarray  # F, float64 [S]
    is_minimum: np.ndarray  # bool [S], False if the steps ran out first


class _State(NamedTuple):
    theta: jax.Array  # [P]
    objective: jax.Array
    damping: jax.Array
    is_minimum: jax.Array
    n_steps: jax.Array


def minimise(
    design_nxKxP: np.ndarray,
    offset_nxK: np.ndarray,
    log_loss_n: np.ndarray,
    starts_SxP: np.ndarray,
    *,
    weights_Sxn: np.ndarray | None = None,
    delta: float,
    n_steps: int,
) -> Minima:
    """Returns the θ and F that each start reaches within `n_steps` steps.

    Args:
        design_nxKxP, offset_nxK: M and o of F, float64.
        weights_Sxn: how often each point counts for each start; None: once.
        delta: where the Huber loss turns from r²/2 to linear; infinity gives least squares.
    """
    n_starts, n_points = len(starts_SxP), len(log_loss_n)
    none, padding = (0, 0), (0, -n_points % _POINTS)
    weights = np.ones((1, n_points)) if weights_Sxn is None else weights_Sxn
    padded = np.pad(weights, (none, padding))
    weights = np.broadcast_to(padded, (n_starts, padded.shape[1]))
    problem = (
        np.pad(design_nxKxP, (padding, none, none)),
        np.pad(offset_nxK, (padding, none)),
        np.pad(log_loss_n, padding),
    )
    found = []
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        for first in range(0, n_starts, _LANES):
            # The last batch is padded too, with copies of the last start.
            chosen = np.minimum(np.arange(first, first + _LANES), n_starts - 1)
            state = _descend(*problem, float(delta), n_steps, starts_SxP[chosen], weights[chosen])
            arrays = (state.theta, state.objective, state.is_minimum)
            found.append([np.asarray(array)[: n_starts - first] for array in arrays])
    return Minima(*(np.concatenate(column) for column in zip(*found, strict=True)))


def huber(residual: jax.Array, delta: jax.Array) -> jax.Array:
    """Returns r²/2 up to |r| = δ, and δ·(|r| − δ/2) beyond."""
    size = jnp.abs(residual)
    inside = jnp.minimum(size, delta)
    return inside * (size - inside / 2)


@jax.jit
def _descend(
    design: jax.Array,
    offset: jax.Array,
    log_loss: jax.Array,
    delta: jax.Array,
    n_steps: jax.Array,
    starts: jax.Array,
    weights: jax.Array,
) -> _State:
    flat = design.reshape(-1, design.shape[-1])  # [n·K, P]

    def terms(theta: jax.Array) -> jax.Array:
        return (flat @ theta).reshape(offset.shape) + offset

    def objective(theta: jax.Array, weight: jax.Array) -> jax.Array:
        value = jnp.sum(weight * huber(logsumexp(terms(theta), axis=1) - log_loss, delta))
        return jnp.where(jnp.isfinite(value), value, jnp.inf)

    def step(state: _State, weight: jax.Array) -> _State:
        logs = terms(state.theta)
        fitted = logsumexp(logs, axis=1)
        share = jnp.exp(logs - fitted[:, None])  # of each term in the law, [n, K]
        jacobian = jnp.einsum("nk,nkp->np", share, design)
        residual = fitted - log_loss
        size = jnp.abs(residual)
        slope = weight * jnp.clip(residual, -delta, delta)
        gradient = jacobian.T @ slope

        # Two models of F. Its own second derivatives converge fast, but only near the minimum; the
        # parabolas that touch the Huber loss from above always descend.
        curved = (flat * (slope[:, None] * share).reshape(-1, 1)).T @ flat
        inner = weight * (size < delta) - slope
        newton = (jacobian * inner[:, None]).T @ jacobian + curved
        outer = weight * jnp.minimum(1.0, delta / jnp.maximum(size, jnp.finfo(size.dtype).tiny))
        majorising = (jacobian * outer[:, None]).T @ jacobian
        scale = jnp.diag(majorising)
        scale = jnp.diag(scale + 1e-12 * jnp.max(scale) + jnp.finfo(size.dtype).tiny)

        moves = jnp.stack(
            [
                -jnp.linalg.solve(model + state.damping * scale, gradient)
                for model in (newton, majorising)
            ]
        )
        trials = jnp.clip(state.theta + moves, -_FARTHEST, _FARTHEST)
        values = jax.vmap(objective, (0, None))(trials, weight)
        best = jnp.argmin(values)
        descends = values[best] < state.objective
        predicted = -gradient @ moves[1] / 2
        is_minimum = (predicted <= _LEAST_DECREASE * state.objective) | (
            ~descends & (state.damping > _LARGEST_DAMPING)
        )
        return _State(
            jnp.where(descends, trials[best], state.theta),
            jnp.where(descends, values[best], state.objective),
            jnp.where(descends, state.damping / 8, state.damping * 4),
            state.is_minimum | is_minimum,
            state.n_steps + 1,
        )

    def descend(theta: jax.Array, weight: jax.Array) -> _State:
        others = (jnp.asarray(_FIRST_DAMPING), jnp.asarray(False), jnp.asarray(0))
        start = _State(theta, objective(theta, weight), *others)
        return jax.lax.while_loop(
            lambda state: ~state.is_minimum & (state.n_steps < n_steps),
            lambda state: step(state, weight),
            start,
        )

    return jax.vmap(descend)(starts, weights)
