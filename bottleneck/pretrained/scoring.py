"""Log-probabilities of given tokens and greedy next tokens, for evaluation.

B: sequences in a batch; L: tokens of a padded sequence. Sequences are padded to a few lengths, so
few programs are compiled. The padding is on the right, which a causal model does not see. The batch
is split over the mesh as in training. Logits of all positions never exist at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from bottleneck.config import ComputeConfig, MeshConfig, ModelConfig
from bottleneck.errors import UserError
from bottleneck.model import transformer
from bottleneck.model.head import HeadFactors
from bottleneck.model.transformer import Params
from bottleneck.parallel import mesh as mesh_lib

_SHORTEST = 32  # padded length; the next are its doubles


@dataclasses.dataclass(frozen=True)
class Score:
    """Score of the last tokens of a sequence, given the tokens before them."""

    log_probability: float  # nats, summed over the tokens
    is_greedy: bool  # each is the most likely one


class Scorer:
    """A model on a mesh that scores and continues sequences of tokens."""

    def __init__(
        self,
        config: ModelConfig,
        params: Params,
        *,
        compute: ComputeConfig | None = None,
        batch_size: int = 16,
        mesh: Mesh | None = None,
    ):
        """Puts the parameters on the mesh.

        Args:
            compute: None takes the default, float32; its mesh is ignored.
            batch_size: B, rounded up to a multiple of the devices that share a batch.
            mesh: None takes all devices, each with a share of the parameters.
        """
        self.config, self.compute = config, compute or ComputeConfig()
        self._mesh = mesh_lib.make_mesh(MeshConfig()) if mesh is None else mesh
        shares = self._mesh.shape["replica"] * self._mesh.shape["fsdp"]
        self._batch_size = -(-batch_size // shares) * shares
        self._graph = transformer.graph(config, self.compute)
        try:
            self._params = jax.device_put(params, transformer.shardings(config, self._mesh))
        except ValueError as error:
            sizes = ", ".join(f"{k}={v}" for k, v in self._mesh.shape.items())
            reason = f"the model has no even shares on a mesh of {sizes}: {error}"
            raise UserError(" ".join(reason.split())) from error
        everywhere = mesh_lib.replicated(self._mesh)
        self._score = jax.jit(self._score_batch, out_shardings=everywhere)
        self._next = jax.jit(self._next_tokens, out_shardings=everywhere)

    def score(self, requests: Sequence[tuple[Sequence[int], int]]) -> list[Score]:
        """Scores the last n tokens of each sequence, for (sequence, n) in `requests`.

        A sequence has at most max_length + 1 tokens, and 1 ≤ n < its length.
        """
        results: dict[int, Score] = {}
        for batch in self._batches([len(tokens) - 1 for tokens, _ in requests]):
            rows = [requests[i][0] for i in batch]
            inputs, targets = self._pad([r[:-1] for r in rows]), self._pad([r[1:] for r in rows])
            log_p_BxL, is_top_BxL = jax.device_get(self._run(self._score, inputs, targets))
            for row, i in enumerate(batch):
                tokens, n = requests[i]
                scored = slice(len(tokens) - 1 - n, len(tokens) - 1)
                results[i] = Score(
                    float(np.sum(log_p_BxL[row, scored], dtype=np.float64)),
                    bool(np.all(is_top_BxL[row, scored])),
                )
        return [results[i] for i in range(len(requests))]

    def extend(self, sequences: Sequence[Sequence[int]]) -> list[int]:
        """Returns the most likely next token of each sequence of at most max_length tokens.

        Without a cache of keys and values, a token costs a forward pass over its sequence.
        """
        results: dict[int, int] = {}
        for batch in self._batches([len(tokens) for tokens in sequences]):
            rows = [sequences[i] for i in batch]
            last = np.zeros(self._batch_size, np.int32)
            last[: len(rows)] = [len(row) - 1 for row in rows]
            tokens = jax.device_get(self._run(self._next, self._pad(rows), last))
            results |= {i: int(tokens[row]) for row, i in enumerate(batch)}
        return [results[i] for i in range(len(sequences))]

    def _batches(self, lengths: list[int]) -> Iterator[list[int]]:
        """Yields indices of sequences of similar length, longest first: memory runs out early."""
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        for start in range(0, len(order), self._batch_size):
            yield order[start : start + self._batch_size]

    def _pad(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        longest = max(map(len, rows))
        assert 1 <= longest <= self.config.max_length, longest
        length = min(max(_SHORTEST, 1 << (longest - 1).bit_length()), self.config.max_length)
        result = np.zeros((self._batch_size, length), np.int32)
        for i, row in enumerate(rows):
            result[i, : len(row)] = row
        return result

    def _run(self, program: jax.stages.Wrapped, *arrays: np.ndarray) -> jax.Array:
        by_row = mesh_lib.batch_sharding(self._mesh)
        with jax.set_mesh(self._mesh):
            return program(self._params, *(jax.device_put(array, by_row) for array in arrays))

    def _score_batch(
        self, params: Params, inputs_BxL: jax.Array, targets_BxL: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Log-probability of each target, float32 [B, L], and if it is the most likely one."""
        model = nnx.merge(self._graph, params)
        hidden_BxLxD, _ = model(inputs_BxL)
        factors = model.head.factors()
        length = inputs_BxL.shape[1]
        chunk = max(min(length, self.compute.loss_chunk // self._batch_size), 1)
        n_chunks = -(-length // chunk)

        def split(array: jax.Array) -> jax.Array:
            padding = [(0, 0), (0, n_chunks * chunk - length)] + [(0, 0)] * (array.ndim - 2)
            parts = jnp.pad(array, padding).reshape(len(array), n_chunks, chunk, *array.shape[2:])
            return jnp.moveaxis(parts, 1, 0)

        def score_chunk(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            hidden, targets = part
            logits = self._logits(factors, hidden)
            of_target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
            log_p = of_target - jax.nn.logsumexp(logits, axis=-1)
            return log_p, jnp.argmax(logits, axis=-1) == targets

        scores = jax.lax.map(score_chunk, (split(hidden_BxLxD), split(targets_BxL)))
        log_p_BxL, is_top_BxL = (
            jnp.moveaxis(score, 0, 1).reshape(len(inputs_BxL), -1)[:, :length] for score in scores
        )
        return log_p_BxL, is_top_BxL

    def _next_tokens(self, params: Params, inputs_BxL: jax.Array, last_B: jax.Array) -> jax.Array:
        """Most likely token after position `last_B` of each sequence, int32 [B]."""
        model = nnx.merge(self._graph, params)
        hidden_BxLxD, _ = model(inputs_BxL)
        hidden_BxD = jnp.take_along_axis(hidden_BxLxD, last_B[:, None, None], axis=1)[:, 0]
        return jnp.argmax(self._logits(model.head.factors(), hidden_BxD), axis=-1)

    def _logits(self, factors: HeadFactors, hidden: jax.Array) -> jax.Array:
        """Logits, float32, with minus infinity for the padded rows of the vocabulary."""
        logits = factors.logits(hidden)
        return jnp.where(jnp.arange(logits.shape[-1]) < self.config.vocab_size, logits, -jnp.inf)
