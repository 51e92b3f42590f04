"""What the loss at every rank costs in one pass, against one evaluation of the loss.

python benchmarks/rank_sweep.py
"""

from __future__ import annotations

import frame
import jax
import numpy as np

from bottleneck.model.head import HeadFactors
from bottleneck.model.loss import token_losses
from bottleneck.probes import truncation
from bottleneck.probes.spectrum import read_core
from bottleneck.probes.token_sweep import token_sweep

CASES = ((4096, 128, 4096), (50_304, 128, 2048))  # V, D, tokens


def main() -> None:
    """Prints a row a case: all ranks with their predictions, over one evaluation."""
    rows = []
    for V, D, n_tokens in CASES:
        keys = jax.random.split(jax.random.key(0), 3)
        factors = HeadFactors(0.02 * jax.random.normal(keys[0], (V, D)), None)
        hidden = jax.random.normal(keys[1], (1, n_tokens, D))
        targets = jax.random.randint(keys[2], (1, n_tokens), 0, V)
        cut = truncation.plain(read_core(factors).raw)
        maps = [jax.numpy.asarray(np.float32(each)) for each in (cut.encode, cut.decode)]
        ranks = tuple(2**i for i in range(D.bit_length()))
        sweep = jax.jit(lambda *arrays, ranks=ranks: token_sweep(*arrays, ranks=ranks))
        once = jax.jit(lambda *arrays: token_losses(*arrays, chunk=256))
        all_ranks = (factors, hidden, targets, *maps)
        whole = (factors, hidden, targets)
        seconds = frame.interleaved(
            {
                "ours": lambda f=sweep, a=all_ranks: jax.block_until_ready(f(*a)),
                "theirs": lambda f=once, a=whole: jax.block_until_ready(f(*a)),
            },
            5,
        )
        rows.append(
            {
                "case": f"V {V:,}, D {D}, {len(ranks)} ranks",
                **frame.compared(seconds, "ours", "theirs"),
            }
        )
    columns = {
        "case": "head",
        "ours": "all ranks, s",
        "theirs": "one loss, s",
        "ratio": "all / one",
    }
    frame.report("rank_sweep", rows, columns)


if __name__ == "__main__":
    main()
