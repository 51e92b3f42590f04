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

`init_params` and `graph` make a model, and `shardings` places it on a mesh. `pythia`, `gpt2` and
`llama` give the fields of published sizes. `HeadFactors` is a head W = A @ B, of which
`cross_entropy` and `token_losses` take the loss without ever holding all logits.
`count_parameters` and `flops_per_token` count. `model.kernels` holds what depends on the platform.
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
