"""Training of many heads on the same frozen features, in one compiled step.

Heads of one rank and start form a group, stacked over their learning rates. Groups share the
program and keep arrays of their own size, so no product is padded. b: tokens of a batch; m:
learning rates; V: vocabulary; R: rank; D: hidden width; C: E[h hᵀ].
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bottleneck.config import OptimizerConfig
from bottleneck.model.head import HeadFactors
from bottleneck.model.loss import cross_entropy
from bottleneck.probes.truncation import Truncation
from bottleneck.training.schedules import learning_rate_schedule

# The paper trains its heads with Pythia's optimizer (Biderman et al. 2023).
_OPTIMIZER = OptimizerConfig(learning_rate=1.0, final_fraction=0.01)


class Heads(NamedTuple):
    """Heads of one rank: rows float32 [m, V, R], basis float32 [m, R, D]."""

    rows: jax.Array
    basis: jax.Array

    def one(self, index: int) -> HeadFactors:
        return HeadFactors(self.rows[index], self.basis[index])


class Best(NamedTuple):
    """The optimizer state of a group, and its best heads so far."""

    moments: Any  # of Adam
    best: Heads  # at the lowest validation loss
    best_loss: jax.Array  # [m]
    best_step: jax.Array  # int32 [m]


class State(NamedTuple):
    """A group of heads in training."""

    heads: Heads
    progress: Best


@dataclass(frozen=True, eq=False)  # jitted methods tell trainings apart by identity
class Training:
    """The objective and the update rule, the same for all heads of a study.

    moment: C, [D, D].
    ridge: λ of the penalty λ/2·E‖W h‖² on the mean square of the logits.
    """

    chunk: int  # tokens with logits at a time
    moment: jax.Array
    ridge: float

    def objective(self, factors: HeadFactors, hidden_bxD: jax.Array, targets_b: jax.Array) -> Any:
        """Returns the mean cross-entropy in nats per token, plus the penalty."""
        arrays = (hidden_bxD[None], targets_b[None], jnp.ones((1, len(targets_b))))
        total, _ = cross_entropy(factors, *arrays, chunk=self.chunk)
        return total / len(targets_b) + self.penalty(factors)

    def penalty(self, factors: HeadFactors) -> jax.Array:
        """Returns λ/2·tr(AᵀA · B C Bᵀ) = λ/2·E‖A B h‖²."""
        rows, basis = factors.rows, factors.basis
        gram = rows.T @ rows
        moment = self.moment if basis is None else basis @ self.moment @ basis.T
        return self.ridge / 2 * jnp.sum(gram * moment)

    def start(self, heads: Heads) -> State:
        m = len(heads.rows)
        progress = Best(
            moments=jax.vmap(self._rule().init)(heads),
            best=jax.tree.map(jnp.copy, heads),
            best_loss=jnp.full(m, jnp.inf),
            best_step=jnp.zeros(m, jnp.int32),
        )
        return State(heads, progress)

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def steps(
        self,
        states: list[State],
        learning_rates: list[jax.Array],
        hidden_KxbxD: jax.Array,
        targets_Kxb: jax.Array,
    ) -> list[State]:
        """Updates every head K times; `learning_rates` has one [K, m] per group."""

        def one(states: list[State], arrays: Any) -> tuple[list[State], None]:
            hidden, targets, rates = arrays
            pairs = zip(states, rates, strict=True)
            return [self._update(state, rate, hidden, targets) for state, rate in pairs], None

        batches = (hidden_KxbxD, targets_Kxb, learning_rates)
        return jax.lax.scan(one, states, batches)[0]

    def _update(
        self, state: State, rates_m: jax.Array, hidden_bxD: jax.Array, targets_b: jax.Array
    ) -> State:
        def loss(heads: Heads) -> jax.Array:
            return self.objective(HeadFactors(*heads), hidden_bxD, targets_b)

        def one(heads: Heads, moments: Any, rate: jax.Array) -> tuple[Heads, Any]:
            updates, moments = self._rule().update(jax.grad(loss)(heads), moments)
            return jax.tree.map(lambda x, u: x - rate * u, heads, updates), moments

        heads, moments = jax.vmap(one)(state.heads, state.progress.moments, rates_m)
        return State(heads, state.progress._replace(moments=moments))

    def _rule(self) -> optax.GradientTransformation:
        assert _OPTIMIZER.clip_norm is not None
        return optax.chain(
            optax.clip_by_global_norm(_OPTIMIZER.clip_norm),
            optax.scale_by_adam(_OPTIMIZER.beta1, _OPTIMIZER.beta2, _OPTIMIZER.epsilon),
        )

    @functools.partial(jax.jit, static_argnums=0)
    def evaluate(
        self, heads: Heads, hidden_NxD: jax.Array, targets_N: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns each token's cross-entropy in nats, and 1 if its top guess is right: [m, N]."""

        def of_head(head: Heads) -> tuple[jax.Array, jax.Array]:
            def of_token(arrays: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
                hidden, target = arrays
                logits = HeadFactors(*head).logits(hidden)
                loss = jax.nn.logsumexp(logits) - logits[target]
                # Ties count as right: an untrained head has many.
                return loss, (logits[target] >= jnp.max(logits)).astype(jnp.float32)

            return jax.lax.map(of_token, (hidden_NxD, targets_N), batch_size=self.chunk)

        return jax.vmap(of_head)(heads)

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def keep_best(self, state: State, loss_m: jax.Array, step: jax.Array) -> State:
        """Returns the state; heads at their lowest validation loss so far become its best."""
        old = state.progress
        is_better = loss_m < old.best_loss

        def pick(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(is_better.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

        progress = Best(
            moments=old.moments,
            best=jax.tree.map(pick, state.heads, old.best),
            best_loss=pick(loss_m, old.best_loss),
            best_step=pick(jnp.full_like(old.best_step, step), old.best_step),
        )
        return State(state.heads, progress)


def schedule(steps: int) -> np.ndarray:
    """Returns learning rates over their peak, float32 [steps]: 1 % warm-up, cosine to 1 %."""
    unit = dataclasses.replace(_OPTIMIZER, warmup_steps=steps // 100)
    return np.asarray(jax.vmap(learning_rate_schedule(unit, steps))(jnp.arange(steps)), np.float32)


class BatchOrder:
    """The tokens of each step: blocks of neighbours, in a new order every epoch.

    The order depends on the seed and the step alone, so a resumed training takes the same tokens.
    """

    def __init__(self, n_tokens: int, batch_tokens: int, seed: int, block: int = 64):
        self._block = min(block, batch_tokens, n_tokens)
        self._per_batch = batch_tokens // self._block
        self._n_blocks = n_tokens // self._block
        self._seed = seed

    def rows(self, step: int) -> np.ndarray:
        """Returns the indices of the tokens of a step: int64 [b]."""
        places = step * self._per_batch + np.arange(self._per_batch)
        epochs, within = np.divmod(places, self._n_blocks)
        orders = {e: self._order(int(e)) for e in np.unique(epochs)}
        blocks = np.array([orders[e][i] for e, i in zip(epochs, within, strict=True)])
        return (blocks[:, None] * self._block + np.arange(self._block)).reshape(-1)

    @functools.lru_cache(maxsize=2)  # noqa: B019  one object lives as long as a study
    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self._seed, epoch)).permutation(self._n_blocks)


Start = Literal["normal", "matched", "plain", "whitened"]
STARTS: tuple[Start, ...] = get_args(Start)


def starting_heads(
    start: Start, rank: int, own: HeadFactors, cut: Truncation | None, n: int, key: jax.Array
) -> Heads:
    """Returns n equal heads of a rank, before training.

    - "normal": N(0, 1) entries in both factors, as in the paper (appendix B).
    - "matched": the variance of a full head's logits, as in `model.head.FactoredHead`.
    - "plain", "whitened": the model's own head, truncated.

    Args:
        cut: the truncation of that name; None for random starts.
    """
    n_rows, width = own.rows.shape[0], own.width
    if cut is None:
        matched = ((2 / (5 * width)) ** 0.5, rank**-0.5)
        rows_std, basis_std = (1.0, 1.0) if start == "normal" else matched
        of_rows, of_basis = jax.random.split(key)
        rows = rows_std * jax.random.normal(of_rows, (n_rows, rank))
        basis = basis_std * jax.random.normal(of_basis, (rank, width))
    else:
        factors = cut_head(own, cut, rank)
        assert factors.basis is not None
        rows, basis = factors.rows, factors.basis
        # Adam takes steps of one size, so both factors get one size.
        sizes = [jnp.sqrt(jnp.mean(x**2, axis)) for x, axis in ((rows, 0), (basis, 1))]
        scale = jnp.sqrt(sizes[1] / jnp.maximum(sizes[0], 1e-30))
        rows, basis = rows * scale, basis / jnp.maximum(scale, 1e-30)[:, None]
    return Heads(jnp.tile(rows, (n, 1, 1)), jnp.tile(basis, (n, 1, 1)))


def cut_head(own: HeadFactors, cut: Truncation, rank: int) -> HeadFactors:
    """Returns the head truncated to a rank."""
    decode = jnp.float32(cut.decode[:, :rank])
    inner = decode if own.basis is None else own.basis @ decode
    return HeadFactors(own.rows @ inner, jnp.float32(cut.encode[:, :rank].T), own.n_rows)
