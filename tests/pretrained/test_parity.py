"""Our logits against those of transformers, for the three families and in both directions.

Both compute in float32; the models are random, with no bias and no norm at its initial value.
"""

import json
from importlib.util import find_spec

import jax
import numpy as np
import pytest
from flax import nnx

from bottleneck.model import transformer
from bottleneck.pretrained.huggingface import from_pretrained, save_pretrained

pytestmark = [
    pytest.mark.hf,
    pytest.mark.skipif(
        find_spec("torch") is None or find_spec("transformers") is None,
        reason="needs the [hf] extra: make test-hf",
    ),
]

TOLERANCE = 2e-5  # of logits near 1: sums of some 100 products, three layers deep; 3e-6 was seen

# Widths that are odd or no power of two, a vocabulary that is not padded.
GPT_NEOX = dict(
    model_type="gpt_neox",
    vocab_size=301,
    hidden_size=60,
    num_hidden_layers=3,
    num_attention_heads=6,
    intermediate_size=97,
    max_position_embeddings=50,
)
GPT2 = dict(
    model_type="gpt2", vocab_size=301, n_embd=60, n_layer=3, n_head=4, n_inner=97, n_positions=50
)
LLAMA = GPT_NEOX | dict(model_type="llama", num_key_value_heads=2)
PUBLISHED = {
    "gpt_neox": GPT_NEOX | dict(rotary_pct=0.25),
    "gpt_neox, sequential": GPT_NEOX | dict(rotary_pct=0.4, use_parallel_residual=False),
    "gpt_neox, tied": GPT_NEOX
    | dict(rotary_pct=1.0, rotary_emb_base=321, tie_word_embeddings=True, hidden_act="gelu_new"),
    "gpt_neox, bare attention": GPT_NEOX | dict(rotary_pct=0.6, attention_bias=False),
    "gpt_neox, no rotation": GPT_NEOX | dict(rotary_pct=0.0, layer_norm_eps=1e-3),
    "gpt2": GPT2,
    "gpt2, untied": GPT2 | dict(tie_word_embeddings=False, activation_function="gelu"),
    "gpt2, four times as wide": GPT2 | dict(n_inner=None, activation_function="gelu_fast"),
    "llama": LLAMA,
    "llama, one key": LLAMA | dict(num_key_value_heads=1, attention_bias=True, mlp_bias=True),
    "llama, tied": LLAMA | dict(num_key_value_heads=6, tie_word_embeddings=True, rope_theta=5e5),
    "llama, biases on attention": LLAMA | dict(attention_bias=True, rms_norm_eps=1e-3),
    "llama, biases on the MLP": LLAMA | dict(mlp_bias=True),
}
OURS = {
    "parallel": ("gpt_neox", dict(parallel_residual=True, rotary_fraction=0.6)),
    "sequential, tied": ("gpt_neox", dict(tie_embeddings=True, mlp="gelu_tanh")),
    "no biases": ("gpt_neox", dict(use_bias=False, rotary_theta=77.0)),
    "padded vocabulary": ("gpt_neox", dict(vocab_multiple=64)),
    "factored head": ("gpt_neox", dict(head_rank=7)),
    "learned positions": ("gpt2", {}),
    "learned positions, no biases": ("gpt2", dict(use_bias=False, tie_embeddings=False)),
    "learned positions, factored and tied": ("gpt2", dict(head_rank=7)),
    "grouped keys": ("llama", {}),
    "grouped keys, biases": ("llama", dict(use_bias=True, n_kv_heads=3, norm_epsilon=1e-3)),
}


@pytest.fixture
def tokens():
    return np.random.default_rng(3).integers(0, 301, (3, 29))


def published(fields, dtype="float32"):
    """A model of transformers with all its parameters drawn."""
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(**fields)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.1, generator=generator)
            if ("norm" in name or "ln_" in name) and name.endswith("weight"):
                parameter.add_(1)
    return model.to(getattr(torch, dtype))


def their_logits(model, tokens):
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits.numpy()


def our_logits(config, params, tokens):
    graph = transformer.graph(config)

    @jax.jit
    def logits(params):
        model = nnx.merge(graph, params)
        return model.head.factors().logits(model(tokens)[0])

    return np.asarray(logits(params))[..., : config.vocab_size]


def assert_agree(ours, theirs):
    assert ours.shape == theirs.shape
    assert np.std(theirs) > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("fields", PUBLISHED.values(), ids=PUBLISHED)
def test_a_published_model_has_the_same_logits_here(fields, tokens, tmp_path):
    theirs = published(fields)
    theirs.save_pretrained(tmp_path)
    assert_agree(our_logits(*from_pretrained(tmp_path), tokens), their_logits(theirs, tokens))


@pytest.mark.parametrize(("family", "changes"), OURS.values(), ids=OURS)
def test_a_model_of_ours_has_the_same_logits_there(family, changes, build, tokens, tmp_path):
    import transformers

    config, params = build(family, **changes)
    save_pretrained(config, params, tmp_path / "model")
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert not any(report.values()), report
    assert_agree(our_logits(config, params, tokens), their_logits(theirs.eval(), tokens))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("fields", [GPT_NEOX, GPT2, LLAMA], ids=["gpt_neox", "gpt2", "llama"])
def test_shards_in_half_precision_have_the_same_logits_here(fields, dtype, tokens, tmp_path):
    import torch
    import transformers

    published(fields, dtype).save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    load = transformers.AutoModelForCausalLM.from_pretrained
    theirs = load(tmp_path, dtype=torch.float32).eval()
    assert_agree(our_logits(*from_pretrained(tmp_path), tokens), their_logits(theirs, tokens))


def test_the_files_of_both_have_the_same_tensors(tmp_path):
    from safetensors.numpy import load_file

    for fields in (GPT_NEOX, GPT2, LLAMA):
        theirs, ours = tmp_path / f"{fields['model_type']}-theirs", tmp_path / fields["model_type"]
        published(fields).save_pretrained(theirs)
        save_pretrained(*from_pretrained(theirs), ours)
        one, other = (load_file(path / "model.safetensors") for path in (theirs, ours))
        assert one.keys() == other.keys()
        for name, value in one.items():
            np.testing.assert_array_equal(value, other[name])
        kind = json.loads((ours / "config.json").read_text())["architectures"]
        assert kind == json.loads((theirs / "config.json").read_text())["architectures"]
