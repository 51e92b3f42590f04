"""Measurements of a model: the head's spectrum, the cost of each rank, hidden-state geometry.

V: rows of the head; D: hidden width; R: rank; W: the head [V, D]; σ: its singular values.
Cross-entropies, gaps and entropies are in nats, per token. A gap is the loss of the head truncated
to a rank minus the loss of the whole head:

>>> import jax.numpy as jnp
>>> from bottleneck import probes
>>> from bottleneck.model.head import HeadFactors

>>> head = HeadFactors(jnp.diag(jnp.array([3.0, 2.0, 1.0])))
>>> probes.head_spectrum(head).round(4)
array([3., 2., 1.])

>>> hidden, targets = jnp.eye(3)[None], jnp.array([[0, 1, 2]])  # [B, L, D], [B, L]
>>> probes.rank_sweep(head, hidden, targets, ranks=[1, 2]).loss.round(2)  # at ranks 1, 2 and 3
array([0.76, 0.48, 0.3 ])

`rank_sweep` returns a `RankSweep`; its `gaps` are a `runs.RankGaps` with standard errors.
- Of σ: `singular_entropy`, `effective_rank`, `stable_rank`, `participation_ratio`,
  `tail_exponent`, `w_error`; `plain_bound` and `whitened_bound` bound the gap.
- Of hidden states: `anisotropy`, `second_moment`, `covariance`, `iso_score`.
"""

from bottleneck.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "spectrum": ["HeadSpectrum", "head_spectrum"],
        "gap": ["RankSweep", "rank_sweep"],
        "spectral_metrics": [
            *("singular_entropy", "linear_singular_entropy", "effective_rank", "stable_rank"),
            *("participation_ratio", "tail_exponent", "w_error"),
        ],
        "bounds": ["lipschitz_bound", "plain_bound", "whitened_bound"],
        "geometry": ["anisotropy", "second_moment", "covariance", "iso_score"],
        "document_sums": ["DocumentSums"],
    },
)
