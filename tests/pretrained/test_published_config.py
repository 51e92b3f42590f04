"""config.json ↔ ModelConfig: older and newer spellings, and a refusal for what we cannot be.

The records of the first tests are those that the hub has for these models, written out by hand.
"""

import json

import pytest

from bottleneck.config import ModelConfig
from bottleneck.errors import UserError
from bottleneck.model import family
from bottleneck.pretrained.published_config import Architecture, config_record, publish, read_config

PYTHIA_70M = dict(
    architectures=["GPTNeoXForCausalLM"],
    bos_token_id=0,
    eos_token_id=0,
    hidden_act="gelu",
    hidden_size=512,
    initializer_range=0.02,
    intermediate_size=2048,
    layer_norm_eps=1e-05,
    max_position_embeddings=2048,
    model_type="gpt_neox",
    num_attention_heads=8,
    num_hidden_layers=6,
    rotary_emb_base=10000,
    rotary_pct=0.25,
    tie_word_embeddings=False,
    torch_dtype="float16",
    transformers_version="4.24.0",
    use_cache=True,
    use_parallel_residual=True,
    vocab_size=50304,
)
GPT2 = dict(
    activation_function="gelu_new",
    architectures=["GPT2LMHeadModel"],
    attn_pdrop=0.1,
    bos_token_id=50256,
    embd_pdrop=0.1,
    eos_token_id=50256,
    initializer_range=0.02,
    layer_norm_epsilon=1e-05,
    model_type="gpt2",
    n_ctx=1024,
    n_embd=768,
    n_head=12,
    n_layer=12,
    n_positions=1024,
    resid_pdrop=0.1,
    summary_activation=None,
    summary_first_dropout=0.1,
    summary_proj_to_labels=True,
    summary_type="cls_index",
    summary_use_proj=True,
    task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}},
    vocab_size=50257,
)
SMOLLM_135M = dict(
    architectures=["LlamaForCausalLM"],
    attention_bias=False,
    attention_dropout=0.0,
    bos_token_id=0,
    eos_token_id=0,
    hidden_act="silu",
    hidden_size=576,
    initializer_range=0.02,
    intermediate_size=1536,
    max_position_embeddings=2048,
    mlp_bias=False,
    model_type="llama",
    num_attention_heads=9,
    num_hidden_layers=30,
    num_key_value_heads=3,
    pretraining_tp=1,
    rms_norm_eps=1e-05,
    rope_scaling=None,
    rope_theta=10000.0,
    tie_word_embeddings=True,
    torch_dtype="bfloat16",
    transformers_version="4.42.3",
    use_cache=True,
    vocab_size=49152,
)


@pytest.fixture
def read(tmp_path):
    def read(record):
        (tmp_path / "config.json").write_text(json.dumps(record))
        return read_config(tmp_path)

    return read


@pytest.mark.parametrize(
    ("record", "fields", "own"),
    [
        (PYTHIA_70M, family.pythia("70m"), dict(vocab_size=50304, vocab_multiple=1, d_ff=2048)),
        (GPT2, family.gpt2("small"), {}),
        (SMOLLM_135M, family.llama("smollm-135m"), dict(vocab_multiple=1)),
    ],
    ids=["pythia-70m", "gpt2", "smollm-135m"],
)
def test_released_models_are_those_of_our_configs(read, record, fields, own):
    # How a model is initialised is in no config.json; the rest is.
    wanted = fields | own | dict(init_std=None, output_init_std=None)
    if record is SMOLLM_135M:
        wanted |= dict(norm_epsilon=1e-5)
    assert read(record).model == ModelConfig(**wanted)


def test_the_newer_group_of_rotary_fields_says_the_same_as_the_older_fields(read):
    newer = {k: v for k, v in PYTHIA_70M.items() if not k.startswith("rotary")}
    group = dict(rope_type="default", rope_theta=500.0, partial_rotary_factor=0.5)
    older = dict(rotary_emb_base=500, rotary_pct=0.5)
    assert read(newer | dict(rope_parameters=group)) == read(PYTHIA_70M | older)
    assert read(SMOLLM_135M | dict(rope_parameters=dict(rope_theta=7.0))).model.rotary_theta == 7


@pytest.mark.parametrize(
    ("record", "change", "message"),
    [
        (PYTHIA_70M, dict(model_type="bert"), "model_type='bert' .* one of gpt_neox, gpt2, llama"),
        (PYTHIA_70M, dict(hidden_act="relu"), "hidden_act='relu' .* one of gelu, gelu_new"),
        (PYTHIA_70M, dict(hidden_size=None), "has no hidden_size"),
        (PYTHIA_70M, dict(rope_scaling=dict(type="linear", factor=2.0)), "rope_scaling='linear'"),
        (PYTHIA_70M, dict(rotary_pct=0.3), "rotary_fraction=0.3 .* even"),
        (PYTHIA_70M, dict(quantization_config=dict(bits=4)), "quantization_config=.*absent"),
        (GPT2, dict(scale_attn_weights=False), "scale_attn_weights=False .* must be True"),
        (GPT2, dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx=True"),
        (GPT2, dict(add_cross_attention=True), "add_cross_attention=True"),
        (SMOLLM_135M, dict(head_dim=128), "head_dim=128 .* must be 64"),
        (SMOLLM_135M, dict(hidden_act="gelu"), "hidden_act='gelu' .* one of silu"),
        (SMOLLM_135M, dict(rope_scaling=dict(rope_type="llama3")), "rope_scaling='llama3'"),
        (SMOLLM_135M, dict(rope_parameters=dict(partial_rotary_factor=0.5)), "factor=0.5"),
        (SMOLLM_135M, dict(num_attention_heads=7), "head_dim|d_model=576"),
        (SMOLLM_135M, dict(sliding_window=512), "sliding_window=512"),
        (PYTHIA_70M, dict(model_type=["gpt_neox"]), "model_type=.* is not supported"),
        (PYTHIA_70M, dict(hidden_act=["gelu"]), "hidden_act=.* one of gelu"),
        (PYTHIA_70M, dict(rope_scaling="linear"), "rope_scaling='linear' .* group of fields"),
        (PYTHIA_70M, dict(rope_parameters=[1]), "rope_parameters=.* group of fields"),
        (PYTHIA_70M, dict(vocab_size=10**12), "vocab_size=1000000000000 .* 1 to 2,147,483,647"),
        (PYTHIA_70M, dict(num_hidden_layers=10**30), "num_hidden_layers=10+ .* whole number"),
        (GPT2, dict(n_embd=-768), "n_embd=-768 .* whole number"),
        (SMOLLM_135M, dict(num_attention_heads=0), "num_attention_heads=0 .* whole number"),
        (SMOLLM_135M, dict(hidden_size="576"), "hidden_size='576' .* whole number"),
        (SMOLLM_135M, dict(hidden_size=576.0), "hidden_size=576.0 .* whole number"),
    ],
)
def test_what_we_cannot_be_is_refused_by_its_name(read, tmp_path, record, change, message):
    with pytest.raises(UserError, match=message) as raised:
        read(record | change)
    assert str(raised.value).startswith(str(tmp_path / "config.json"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("contents", [None, "{", "[]", "[" * 100_000])
def test_a_folder_without_a_config_is_refused_in_one_line(tmp_path, contents):
    if contents is not None:
        (tmp_path / "config.json").write_text(contents)
    with pytest.raises(UserError, match=r"config\.json") as raised:
        read_config(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_model_without_biases_is_published_with_zeros_where_its_family_has_them(read):
    model = ModelConfig(use_bias=False, vocab_multiple=1)
    published = publish(model)
    assert (published.attention_bias, published.mlp_bias) == (False, True)
    with_zeros = ModelConfig(use_bias=True, vocab_multiple=1, d_ff=1024)
    assert read(config_record(published)) == Architecture("gpt_neox", with_zeros, False, True)
