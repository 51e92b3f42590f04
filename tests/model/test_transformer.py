"""The transformer: counts, causality, depth by depth, and what each layer keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bottleneck.config import ComputeConfig, ModelConfig
from bottleneck.model import transformer
from bottleneck.model.accounting import count_parameters, flops_per_token

PYTHIA = dict(vocab_size=300, d_model=32, n_heads=4, n_layers=3)
FAMILIES = {
    "pythia": PYTHIA,
    "pythia factored": PYTHIA | dict(head_rank=6),
    "gpt2": PYTHIA
    | dict(
        parallel_residual=False,
        position="learned",
        max_length=40,
        mlp="gelu_tanh",
        tie_embeddings=True,
    ),
    "gpt2 factored": PYTHIA
    | dict(
        parallel_residual=False, position="learned", max_length=40, tie_embeddings=True, head_rank=6
    ),
    "llama": PYTHIA
    | dict(
        norm="rmsnorm",
        mlp="swiglu",
        use_bias=False,
        parallel_residual=False,
        rotary_fraction=1.0,
        n_kv_heads=2,
        d_ff=80,
    ),
}


def build(config, compute=None, seed=0):
    params = transformer.init_params(config, jax.random.key(seed))
    return nnx.merge(transformer.graph(config, compute or ComputeConfig()), params), params


def tokens(n_rows=2, length=12, seed=5):
    return jax.random.randint(jax.random.key(seed), (n_rows, length), 0, 300)


@pytest.mark.parametrize("fields", FAMILIES.values(), ids=FAMILIES)
def test_counted_parameters_are_those_that_exist(fields):
    config = ModelConfig(**fields)
    _, params = build(config)
    count = count_parameters(config)
    sizes = {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in params.items()}
    assert count.total == sum(sizes.values())
    assert count.head == sizes["head"]
    assert count.non_embedding == sizes["blocks"] + sizes["final_norm"]


def test_counted_flops_are_those_of_the_compiled_forward_pass():
    # XLA counts a scan's body once, so one layer; it also counts norms, softmax and rotation,
    # which are small beside the matrices at this width.
    config = ModelConfig(vocab_size=2048, d_model=256, n_heads=4, n_layers=1)
    _, params = build(config)
    batch = tokens(2, 128)

    def logits(params, batch):
        model = nnx.merge(transformer.graph(config), params)
        return model.head.factors().logits(model(batch)[0])

    cost = jax.jit(logits).lower(params, batch).compile().cost_analysis()
    flops = flops_per_token(config, 128)
    counted = batch.size * (flops.layers + flops.attention + flops.head)
    assert counted == pytest.approx(cost["flops"], rel=0.03)


@pytest.mark.parametrize("fields", FAMILIES.values(), ids=FAMILIES)
def test_hidden_states_do_not_see_later_tokens(fields):
    model, _ = build(ModelConfig(**fields))
    batch = tokens()
    changed = batch.at[:, 7].set((batch[:, 7] + 1) % 300)
    before, after = model(batch)[0], model(changed)[0]
    np.testing.assert_allclose(before[:, :7], after[:, :7], atol=1e-6)
    assert np.abs(before[:, 7:] - after[:, 7:]).max() > 1e-3


@pytest.mark.parametrize("fields", FAMILIES.values(), ids=FAMILIES)
def test_the_scan_equals_the_layers_one_after_another(fields):
    model, params = build(ModelConfig(**fields))
    batch = tokens()
    hidden, depths = model(batch, observe=lambda h: h)
    embedding = model.head if model.config.tie_embeddings else model.embedding
    x = embedding.embed(batch)
    if model.config.position == "learned":
        x = x + params["positions"][: batch.shape[1]]
    graph, stacked = nnx.split(model.blocks)
    for depth in range(model.config.n_layers):
        np.testing.assert_allclose(depths[depth], x, atol=1e-5)
        x = nnx.merge(graph, jax.tree.map(lambda leaf, i=depth: leaf[i], stacked))(x)
    np.testing.assert_allclose(depths[-1], model.final_norm(x), atol=1e-5)
    np.testing.assert_array_equal(depths[-1], hidden)
    assert depths.shape[0] == model.config.n_layers + 1


def test_a_block_of_pythia_adds_attention_and_mlp_of_the_same_input():
    model, _ = build(ModelConfig(**PYTHIA))
    graph, stacked = nnx.split(model.blocks)
    block = nnx.merge(graph, jax.tree.map(lambda leaf: leaf[0], stacked))
    x = jax.random.normal(jax.random.key(1), (2, 12, 32))
    expected = x + block.attention(block.attention_norm(x)) + block.mlp(block.mlp_norm(x))
    np.testing.assert_allclose(block(x), expected, atol=1e-5)


def test_layers_start_different_from_one_another():
    _, params = build(ModelConfig(**PYTHIA))
    kernel = params["blocks"]["mlp"]["up"]["kernel"]
    assert np.abs(kernel[0] - kernel[1]).max() > 0.01


def test_fresh_weights_have_the_spread_of_gpt_neox():
    config = ModelConfig(vocab_size=2048, d_model=256, n_heads=4, n_layers=4)
    _, params = build(config)
    small, wang = (2 / (5 * 256)) ** 0.5, 2 / (4 * 256**0.5)
    blocks = params["blocks"]
    np.testing.assert_allclose(np.std(blocks["attention"]["query"]["kernel"]), small, rtol=0.02)
    np.testing.assert_allclose(np.std(blocks["mlp"]["up"]["kernel"]), small, rtol=0.02)
    np.testing.assert_allclose(np.std(blocks["attention"]["output"]["kernel"]), wang, rtol=0.02)
    np.testing.assert_allclose(np.std(blocks["mlp"]["down"]["kernel"]), wang, rtol=0.02)
    np.testing.assert_allclose(np.std(params["head"]["rows"]), small, rtol=0.02)
    assert not np.any(blocks["mlp"]["up"]["bias"])


@pytest.mark.parametrize("policy", ["dots", "attention", "full"])
def test_rematerialisation_saves_memory_and_changes_no_gradient(policy):
    config = ModelConfig(vocab_size=300, d_model=64, n_heads=4, n_layers=8)
    _, params = build(config)
    batch = tokens(4, 128)

    def compiled(remat):
        graph = transformer.graph(config, ComputeConfig(remat=remat))

        def loss(params):
            return jnp.sum(nnx.merge(graph, params)(batch)[0] ** 3)

        return jax.jit(jax.grad(loss)).lower(params).compile()

    without, with_remat = compiled("none"), compiled(policy)
    temporaries = [c.memory_analysis().temp_size_in_bytes for c in (without, with_remat)]
    assert temporaries[1] < 0.8 * temporaries[0]
    for a, b in zip(
        jax.tree.leaves(without(params)), jax.tree.leaves(with_remat(params)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(a).max())


def kept(config, compute, batch):
    """What the layers keep for the backward pass, stacked: shapes and types."""
    graph = transformer.graph(config, compute)

    def backward(params):
        return jax.vjp(lambda params: nnx.merge(graph, params)(batch)[0], params)[1]

    shapes = jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0)))
    arrays = jax.tree.leaves(jax.eval_shape(backward, shapes))
    return [array for array in arrays if array.shape[:1] == (config.n_layers,)]


# D 32, F 128, 4 heads: the input; queries, keys, values; the mixed values and a log-sum-exp a head.
# Layers of GPT-2 keep what attention adds to the stream too, as their MLP reads the sum.
@pytest.mark.parametrize(
    ("family", "policy", "a_token"),
    [
        ("pythia", "full", 32),
        ("pythia", "dots", 32 + 3 * 32 + 128),
        ("pythia", "attention", 32 + 3 * 32 + 32 + 4),
        ("gpt2", "dots", 32 + 3 * 32 + 32 + 128),
        ("gpt2", "attention", 32 + 3 * 32 + 32 + 4 + 32),
        ("llama", "dots", 32 + 2 * 32 + 32 + 2 * 80),
        ("llama", "attention", 32 + 2 * 32 + 32 + 4 + 32),
    ],
)
def test_a_policy_keeps_what_it_says_of_a_token_and_no_more(family, policy, a_token):
    batch = tokens(2, 37)
    compute = ComputeConfig(remat=policy, attention="blocks")
    arrays = kept(ModelConfig(**FAMILIES[family]), compute, batch)
    sizes = [array.size for array in arrays if 37 in array.shape]
    assert sum(sizes) == a_token * FAMILIES[family]["n_layers"] * batch.size


def test_what_the_kernel_of_a_tpu_gives_is_kept_too():
    config = ModelConfig(**PYTHIA | {"d_model": 256, "n_heads": 2})
    compute = ComputeConfig(remat="attention", attention="splash")
    batch = tokens(2, 384)
    sizes = [array.size for array in kept(config, compute, batch) if 384 in array.shape]
    assert sum(sizes) == (5 * 256 + 2) * config.n_layers * batch.size


def test_what_cudnn_gives_is_kept_too(monkeypatch):
    """Traced alone, as if there were a cuDNN; its kernels need a GPU."""
    cudnn = "jax._src.cudnn.fused_attention_stablehlo"
    monkeypatch.setattr(f"{cudnn}.check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(f"{cudnn}.check_compute_capability", lambda *_: True)
    monkeypatch.setattr(f"{cudnn}.is_cuda_compute_capability_equal", lambda *_: False)
    config = ModelConfig(**PYTHIA)
    compute = ComputeConfig(remat="attention", attention="cudnn", dtype="bfloat16")
    batch = tokens(2, 256)
    sizes = [array.size for array in kept(config, compute, batch) if 256 in array.shape]
    assert sum(sizes) == (32 + 3 * 32 + 32 + 4) * config.n_layers * batch.size


def test_bfloat16_computes_in_bfloat16_from_float32_parameters():
    model, params = build(ModelConfig(**PYTHIA), ComputeConfig(dtype="bfloat16"))
    hidden, _ = model(tokens())
    assert hidden.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    exact, _ = nnx.merge(transformer.graph(ModelConfig(**PYTHIA)), params)(tokens())
    # Three layers, each rounded to 8 bits a few times.
    np.testing.assert_allclose(np.asarray(hidden, np.float32), exact, atol=0.1)


@pytest.mark.parametrize("fields", FAMILIES.values(), ids=FAMILIES)
def test_every_parameter_names_each_of_its_dimensions(fields):
    config = ModelConfig(**fields)
    _, params = build(config)
    axes = transformer.logical_axes(config)
    ranks = jax.tree.map(len, axes, is_leaf=lambda node: isinstance(node, tuple))
    assert ranks == jax.tree.map(jnp.ndim, params)
