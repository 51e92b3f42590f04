"""The compiled training program: it makes parameters, and updates them step by step.

B: sequences in a batch; L: tokens in a sequence. A batch is a dict of `inputs` and `targets`,
int32 [B, L], and `weights`, float32 [B, L], 0 for a target that does not count.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from bottleneck.config import Config
from bottleneck.data.batches import BATCH_TYPES
from bottleneck.model import transformer
from bottleneck.model.loss import cross_entropy
from bottleneck.model.transformer import Params
from bottleneck.parallel import mesh as mesh_lib
from bottleneck.training.optimizer import make_optimizer

Batch = dict[str, jax.Array]
Metrics = dict[str, Any]  # scalars


@dataclass(frozen=True)
class TrainProgram:
    """The functions of a training run, jitted for a mesh, and the shardings of their arrays.

    init() makes (params, opt_state). step(params, opt_state, batch) consumes both and returns them
    updated, with metrics. Those are float32 scalars: `loss` (nats per token), `grad_norm`, and
    `grad_norms`, by the name of the parameter.
    """

    mesh: Mesh
    init: Callable[[], tuple[Params, optax.OptState]]
    step: Any  # the jitted function
    abstract_state: tuple[Any, Any]  # shapes, types and shardings of (params, opt_state)

    def lower(self, batch_size: int, sequence_length: int) -> Any:
        """Traces `step` for batches [B, L]; it needs no data."""
        sharding = mesh_lib.batch_sharding(self.mesh)
        batch = {
            name: jax.ShapeDtypeStruct((batch_size, sequence_length), dtype, sharding=sharding)
            for name, dtype in BATCH_TYPES.items()
        }
        return self.step.lower(*self.abstract_state, batch)

    def compile(self, batch_size: int, sequence_length: int) -> Any:
        """Compiles `step` for batches [B, L]."""
        return self.lower(batch_size, sequence_length).compile()


def make_gradient(config: Config) -> Callable[[Params, Batch], tuple[jax.Array, Params]]:
    """Returns (params, batch) → mean cross-entropy, and the gradient of the mean objective.

    With accumulation, sums over the tokens of micro-batches are added and divided once, so a
    micro-batch counts in proportion to its tokens.
    """
    graph = transformer.graph(config.model, config.compute)
    n_micro = config.compute.accumulation_steps

    def loss(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Returns sums over tokens of objective and cross-entropy, in nats."""
        model = nnx.merge(graph, params)
        hidden_BxLxD, _ = model(batch["inputs"])
        return cross_entropy(
            model.head.factors(),
            hidden_BxLxD,
            batch["targets"],
            batch["weights"],
            chunk=config.compute.loss_chunk,
            z_loss=config.train.z_loss,
        )

    value_and_grad = jax.value_and_grad(loss, has_aux=True)

    def micro_batches(array_BxL: jax.Array) -> jax.Array:
        # Micro-batch m takes rows m, m + n_micro, …: each device holds rows of every micro-batch,
        # and none has to move.
        split = array_BxL.reshape(-1, n_micro, *array_BxL.shape[1:])
        return mesh_lib.constrain(jnp.moveaxis(split, 1, 0), None, "batch", "length")

    def gradient(params: Params, batch: Batch) -> tuple[jax.Array, Params]:
        n_tokens = jnp.sum(batch["weights"])
        if n_micro == 1:
            (_, nats), grads = value_and_grad(params, batch)
        else:

            def add_micro_batch(sums: Any, micro_batch: Batch) -> tuple[Any, None]:
                (_, nats), grads = value_and_grad(params, micro_batch)
                return jax.tree.map(jnp.add, sums, (nats, grads)), None

            start = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
            split = jax.tree.map(micro_batches, batch)
            (nats, grads), _ = jax.lax.scan(add_micro_batch, start, split)
        return nats / n_tokens, jax.tree.map(lambda g: g / n_tokens, grads)

    return gradient


def make_train_program(config: Config, mesh: Mesh) -> TrainProgram:
    """Returns the training program of a config on a mesh; it computes and compiles nothing."""
    axes = transformer.logical_axes(config.model)
    optimizer = make_optimizer(config.optimizer, config.train.steps, axes)
    gradient = make_gradient(config)

    def init() -> tuple[Params, optax.OptState]:
        params = transformer.init_params(config.model, jax.random.key(config.seed))
        return params, optimizer.init(params)

    def step(
        params: Params, opt_state: optax.OptState, batch: Batch
    ) -> tuple[Params, optax.OptState, Metrics]:
        loss, grads = gradient(params, batch)
        squares = {
            "/".join(key.key for key in path): jnp.sum(jnp.square(leaf.astype(jnp.float32)))
            for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
        }
        metrics: Metrics = {
            "loss": loss,
            "grad_norm": jnp.sqrt(jnp.sum(jnp.stack(list(squares.values())))),
            "grad_norms": {name: jnp.sqrt(square) for name, square in squares.items()},
        }
        updates, new_opt_state = optimizer.update(grads, opt_state, params)
        new_params = optax.apply_updates(params, updates)
        if config.train.skip_bad_batches:
            is_good = jnp.isfinite(loss) & jnp.isfinite(metrics["grad_norm"])

            def kept(new: jax.Array, old: jax.Array) -> jax.Array:
                # Counters still advance, so the learning rate stays that of the step.
                is_counter = not jnp.issubdtype(new.dtype, jnp.floating)
                return new if is_counter else jnp.where(is_good, new, old)

            new_params, new_opt_state = jax.tree.map(
                kept, (new_params, new_opt_state), (params, opt_state)
            )
        return new_params, new_opt_state, metrics

    params_sharding = transformer.shardings(config.model, mesh)
    state = jax.eval_shape(init)
    opt_state_sharding = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        state[1],
        params_sharding,
        transform_non_params=lambda _: mesh_lib.replicated(mesh),
    )
    state_sharding = (params_sharding, opt_state_sharding)
    return TrainProgram(
        mesh=mesh,
        init=jax.jit(init, out_shardings=state_sharding),
        step=jax.jit(
            step,
            in_shardings=(*state_sharding, mesh_lib.batch_sharding(mesh)),
            out_shardings=(*state_sharding, mesh_lib.replicated(mesh)),
            donate_argnums=(0, 1),
            compiler_options=mesh_lib.compiler_options(mesh),
        ),
        abstract_state=jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            state,
            state_sharding,
        ),
    )
