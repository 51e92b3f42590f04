"""Transformers whose head has a chosen rank: parameters, hidden states, cross-entropy and cost.

B: sequences; L: tokens; D: hidden width; V: rows of the head; R: its rank; N: parameters.

>>> import jax
>>> from flax import nnx
>>> from bottleneck import model
>>> from bottleneck.config import ModelConfig
>>> config = ModelConfig(vocab_size=300, d_model=32, n_layers=2, n_heads=4, head_rank=8)
>>> params = model.init_params(config, jax.random.key(0))
>>> tokens_BxL = jax.random.randint(jax.random.key(1), (2, 12), 0, 300)
>>> transformer = nnx.merge(model.graph(config), params)
>>> hidden_BxLxD, _ = transformer(tokens_BxL)
>>> losses = model.token_losses(transformer.head.factors(), hidden_BxLxD, tokens_BxL, chunk=24)
>>> losses.shape, model.count_parameters(config).total
((2, 12), 41088)

Make a model with `init_params` and `graph`, and place it on a mesh with `shardings`. Published
sizes are fields of the config: `pythia`, `gpt2`, `llama`. A head W = A @ B is a `HeadFactors`. Its
losses, `cross_entropy` and `token_losses`, never hold all logits. Costs are `count_parameters` and
`flops_per_token`. Operations that depend on the platform live in `model.kernels`.
"""

from bottleneck.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "transformer": ["graph", "init_params", "logical_axes", "shardings"],
        "family": ["gpt2", "llama", "pythia"],
        "head": ["HeadFactors"],
        "loss": ["cross_entropy", "token_losses"],
        "accounting": ["FlopCount", "ParameterCount", "count_parameters", "flops_per_token"],
    },
)
