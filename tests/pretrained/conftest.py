"""Small models of the three families, in shapes that nobody would choose."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from bottleneck.config import ModelConfig
from bottleneck.model import transformer

# Odd widths, a vocabulary that is not padded, positions that no power of two counts.
GPT_NEOX = dict(
    vocab_size=301, vocab_multiple=1, d_model=60, n_heads=6, n_layers=3, d_ff=97, max_length=50
) | dict(parallel_residual=False, rotary_fraction=0.4)
GPT2 = GPT_NEOX | dict(
    position="learned", rotary_fraction=0.25, mlp="gelu_tanh", tie_embeddings=True
)
LLAMA = GPT_NEOX | dict(
    norm="rmsnorm", mlp="swiglu", use_bias=False, rotary_fraction=1.0, n_kv_heads=2
)
SHAPES = {"gpt_neox": GPT_NEOX, "gpt2": GPT2, "llama": LLAMA}


def build(family, **changes):
    """(config, parameters in NumPy), all drawn, biases and norms too."""
    config = ModelConfig(**SHAPES[family] | changes)
    shapes = jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0)))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        values = 0.1 * rng.standard_normal(leaf.shape, np.float32)
        return values + 1 if path[-1].key == "scale" else values

    return config, jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="session", name="build")
def build_fixture():
    return build
