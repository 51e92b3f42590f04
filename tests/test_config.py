"""A config is checked whole at the door, and says in one line what is wrong."""

import contextlib
import functools
import json
import operator

import pytest

from bottleneck import config as config_lib
from bottleneck.config import CheckpointConfig, Config, ModelConfig, TrainConfig
from bottleneck.errors import UserError
from bottleneck.sections import flatten


def parse_with(**changes):
    """The default config with fields such as model__d_model changed."""
    fields = config_lib.base().to_dict()
    for name, value in changes.items():
        *groups, key = name.split("__")
        functools.reduce(operator.getitem, groups, fields)[key] = value
    return config_lib.parse(fields)


def test_defaults_parse_to_the_default_dataclass():
    assert config_lib.parse(config_lib.base()) == Config()


@pytest.mark.parametrize(
    ("changes", "name", "allowed"),
    [
        ({"model__head_rank": 257}, "config.model.head_rank=257", "at most model.d_model=256"),
        ({"model__head_rank": 0}, "config.model.head_rank=0", "at least 1"),
        ({"model__n_heads": 7}, "config.model.d_model=256", "such as 252 or 259"),
        ({"model__n_kv_heads": 3}, "config.model.n_kv_heads=3", "a divisor of model.n_heads=4"),
        ({"model__rotary_fraction": 0.3}, "config.model.rotary_fraction=0.3", "even number"),
        ({"model__norm": "batchnorm"}, "config.model.norm='batchnorm'", "'layernorm', 'rmsnorm'"),
        ({"model__vocab_size": 100}, "config.model.vocab_size=100", "tokenizer_vocab_size=8192"),
        ({"compute__mesh__fsdp": 3}, "config.train.batch_size=16", "such as 15 or 18"),
        (
            {"compute__mesh__fsdp": 12, "train__batch_size": 24},
            "config.model.d_model=256",
            "compute.mesh.fsdp=12, such as 252 or 264; or set compute.mesh.fsdp=4",
        ),
        (
            {"compute__mesh__tensor": 3},
            "config.model.n_heads=4",
            "a multiple of compute.mesh.tensor=3, such as 3 or 6; or set compute.mesh.tensor=1",
        ),
        (
            {"compute__mesh__tensor": 4, "model__n_kv_heads": 2},
            "config.model.n_kv_heads=2",
            "a multiple of compute.mesh.tensor=4, such as 4; or set compute.mesh.tensor=2",
        ),
        (
            {"compute__mesh__tensor": 4, "model__d_ff": 1022},
            "config.model.d_ff=1022",
            "a multiple of compute.mesh.tensor=4, such as 1020 or 1024; "
            "or set compute.mesh.tensor=2",
        ),
        (
            {"compute__mesh__tensor": 4, "model__vocab_size": 9001, "model__vocab_multiple": 3},
            "config.model.vocab_multiple=3",
            "the 9003 rows of the vocabulary become a multiple of compute.mesh.tensor=4, "
            "such as 12 for 9012 rows; or set compute.mesh.tensor=1",
        ),
        ({"compute__accumulation_steps": 3}, "config.train.batch_size=16", "such as 15 or 18"),
        ({"compute__mesh__tensor": -1}, "config.compute.mesh.tensor=-1", "-1 on one axis only"),
        ({"compute__mesh__tensor": 0}, "config.compute.mesh.tensor=0", "at least 1"),
        ({"optimizer__warmup_steps": 1001}, "config.optimizer.warmup_steps=1001", "steps=1000"),
        ({"optimizer__learning_rate": float("nan")}, "learning_rate=nan", "a finite number"),
        ({"optimizer__beta1": 1.5}, "config.optimizer.beta1=1.5", "between 0.0 and 1.0"),
        ({"probe__ranks": [1, 257]}, "config.probe.ranks=257", "between 1 and model.d_model=256"),
        ({"probe__tokens": 5}, "config.probe.tokens=5", "at least train.sequence_length=256"),
        ({"train__sequence_length": 4096}, "train.sequence_length=4096", "max_length=2048"),
        ({"train__steps": 10.0}, "config.train.steps=10.0", "of type int"),
        ({"train__steps": True}, "config.train.steps=True", "of type int"),
        ({"data__paths": "a.txt"}, "config.data.paths='a.txt'", "a list of str"),
        ({"data__corpus": "text"}, "config.data.paths=()", "at least one file"),
        ({"data__corpus": "tfds"}, "config.data.tfds_name=''", "name of a data set"),
        ({"model": 3}, "config.model is 3", "group of fields"),
    ],
)
def test_a_bad_value_is_one_line_with_field_value_and_what_is_allowed(changes, name, allowed):
    with pytest.raises(UserError) as raised:
        parse_with(**changes)
    message = str(raised.value)
    assert name in message
    assert allowed in message
    assert "\n" not in message


def test_what_fits_is_known_only_with_the_devices_where_an_axis_takes_the_rest():
    config = parse_with(model__d_model=260, train__batch_size=24)
    config_lib.check_divides(config, {"replica": 2, "fsdp": 4, "tensor": 2})
    with pytest.raises(
        UserError, match=r"config\.model\.d_model=260 .* compute\.mesh\.fsdp=8, such as 256"
    ):
        config_lib.check_divides(config, {"replica": 1, "fsdp": 8, "tensor": 1})


def test_an_unknown_field_names_the_nearest():
    with pytest.raises(
        UserError, match=r"config\.model\.head_rnk is not a field; did you mean head_rank"
    ):
        parse_with(model__head_rnk=3)


def test_an_integer_is_taken_where_a_float_is_due():
    config = parse_with(optimizer__weight_decay=0)
    assert config.optimizer.weight_decay == 0.0
    assert isinstance(config.optimizer.weight_decay, float)


def test_a_config_survives_json():
    config = parse_with(model__head_rank=8, probe__ranks=[4, 8], data__paths=["a", "b"])
    assert config_lib.parse(json.loads(json.dumps(config_lib.to_dict(config)))) == config


BASE = parse_with(train__bad_steps=2)  # which train.skip_bad_batches needs
TEXTS = ["bfloat16", "known_rank", "full", "rmsnorm", "swiglu", "learned", "xla", "normal", "other"]


def with_another(name):
    """BASE with the first other value that one of its fields takes."""
    default = flatten(BASE)[name]
    candidates = {
        bool: lambda: [not default],
        int: lambda: [2 * default, default // 2, 1],
        float: lambda: [default / 2, 0.5],
        str: lambda: TEXTS,
        tuple: lambda: [["other"], [1]],
        type(None): lambda: [1, "other"],
    }[type(default)]()
    for candidate in candidates:
        with contextlib.suppress(UserError):
            config = parse_with(**{"train__bad_steps": 2, name.replace(".", "__"): candidate})
            if config != BASE:
                return config
    raise AssertionError(f"no other value of {name} is known")


@pytest.mark.parametrize("name", flatten(BASE))
def test_an_experiment_is_blind_to_how_it_is_computed_but_for_the_dtype(name):
    other = with_another(name)
    assert {key for key, _ in flatten(other).items() ^ flatten(BASE).items()} == {name}
    is_the_same = other.experiment() == BASE.experiment()
    assert is_the_same == (name.startswith("compute.") and name != "compute.dtype")


def test_probe_ranks_end_with_the_width():
    assert Config(model=ModelConfig(d_model=48, n_heads=3)).probe_ranks == (1, 2, 4, 8, 16, 32, 48)


def test_padded_vocabulary_is_the_next_multiple():
    assert ModelConfig(vocab_size=8193).padded_vocab_size == 8320
    assert ModelConfig(vocab_size=8192).padded_vocab_size == 8192


def test_checkpoints_are_due_at_multiples_but_0_and_at_the_steps_that_are_named():
    due = CheckpointConfig(every=4).is_due
    assert [step for step in range(13) if due(step)] == [4, 8, 12]
    due = CheckpointConfig(every=4, steps=(0, 5, 8)).is_due
    assert [step for step in range(13) if due(step)] == [0, 4, 5, 8, 12]


def test_skipping_bad_batches_needs_room_for_two():
    with pytest.raises(UserError, match=r"config\.train\.bad_steps=1 .* at least 2"):
        parse_with(train__skip_bad_batches=True)
    parse_with(train__skip_bad_batches=True, train__bad_steps=2)


@pytest.mark.parametrize(
    "changes",
    [
        {"model__head_rank": 256},
        {"optimizer__warmup_steps": 1000},
        {"train__sequence_length": 2048},
        {"probe__tokens": 256},
        {"probe__ranks": [1, 256]},
        {"model__vocab_size": 8192},
        {"optimizer__beta1": 1.0, "optimizer__beta2": 0.0},
        {"data__validation_fraction": 0.5},
        {"data__corpus": "known_rank", "data__language_rank": 127},
    ],
)
def test_a_bound_itself_is_allowed(changes):
    parse_with(**changes)


def test_tokens_per_step_are_those_of_all_sequences():
    assert Config(train=TrainConfig(batch_size=6, sequence_length=10)).tokens_per_step == 60


def test_what_a_model_leaves_open_follows_from_its_width():
    model = ModelConfig(d_model=100, n_heads=5, n_layers=8, rotary_fraction=0.5)
    assert (model.mlp_width, model.kv_heads, model.head_size, model.rotary_size) == (400, 5, 20, 10)
    # GPT-NeoX: small_init and wang_init.
    assert model.weight_std == pytest.approx((2 / 500) ** 0.5)
    assert model.output_weight_std == pytest.approx(2 / 8 / 10)
    given = ModelConfig(d_ff=7, n_kv_heads=2, init_std=0.3, output_init_std=0.0)
    assert (given.mlp_width, given.kv_heads) == (7, 2)
    assert (given.weight_std, given.output_weight_std) == (0.3, 0.0)
