"""What chunking the loss costs and saves: time and temporaries, forward and backward, full head and
factored. Theirs is cross-entropy of logits that are all in memory.

python benchmarks/loss.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import frame
import jax
import jax.numpy as jnp
import optax

from bottleneck.model.head import HeadFactors
from bottleneck.model.loss import cross_entropy

ON_CPU = ((4096, 128, 32, 2048, 256), (50_304, 128, 32, 1024, 1024))
ON_GPU = ((50_304, 768, 128, 16_384, 1024),)  # V, D, R, tokens, tokens a chunk


def plain(factors: HeadFactors, hidden: jax.Array, targets: jax.Array) -> jax.Array:
    """The sum over tokens, its logits in one array."""
    logits = factors.logits(hidden)
    return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits, targets))


def compiled(loss: Callable[..., jax.Array], *arrays: Any) -> tuple[Callable[[], Any], int]:
    """What takes the loss with its gradients by head and hidden states; bytes of temporaries."""
    program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arrays).compile()
    temporaries = program.memory_analysis().temp_size_in_bytes
    return lambda: jax.block_until_ready(program(*arrays)), temporaries


def main() -> None:
    """Prints a row a head: seconds of both, the ratio, and GB of temporaries."""
    rows = []
    on_gpu = jax.default_backend() == "gpu"
    dtype = jnp.bfloat16 if on_gpu else jnp.float32
    for V, D, R, n_tokens, chunk in ON_GPU if on_gpu else ON_CPU:
        for rank in (None, R):
            keys = jax.random.split(jax.random.key(0), 4)
            head = 0.02 * jax.random.normal(keys[0], (V, rank or D))
            basis = None if rank is None else jax.random.normal(keys[1], (rank, D))
            hidden = jax.random.normal(keys[2], (1, n_tokens, D), dtype)
            targets = jax.random.randint(keys[3], (1, n_tokens), 0, V)

            def chunked(
                factors: HeadFactors,
                hidden: jax.Array,
                targets: jax.Array,
                chunk: int = chunk,
            ) -> jax.Array:
                weights = jnp.ones(targets.shape)
                return cross_entropy(factors, hidden, targets, weights, chunk=chunk)[0]

            arrays = (HeadFactors(head, basis), hidden, targets)
            (ours, our_bytes), (theirs, their_bytes) = (
                compiled(loss, *arrays) for loss in (chunked, plain)
            )
            seconds = frame.interleaved({"ours": ours, "theirs": theirs}, 7)
            rows.append(
                {
                    "case": f"V {V:,}, {n_tokens:,} tokens, {f'R {rank}' if rank else 'full'}",
                    **frame.compared(seconds, "ours", "theirs"),
                    "our_gb": f"{our_bytes / 1e9:.3f}",
                    "their_gb": f"{their_bytes / 1e9:.3f}",
                }
            )
    columns = {
        "case": "head",
        "ours": "chunked, s",
        "theirs": "plain, s",
        "ratio": "chunked / plain",
        "our_gb": "temporaries chunked, GB",
        "their_gb": "plain, GB",
    }
    frame.report("loss", rows, columns)


if __name__ == "__main__":
    main()
