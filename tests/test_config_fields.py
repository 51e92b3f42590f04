"""No field of the config is ignored: each changes the program that is compiled, or is known not to.

And a run folder takes another value of a field for another experiment, but for a few fields.
"""

import functools
import operator
import re

import jax
import numpy as np
import pytest

from bottleneck import config as config_lib
from bottleneck.config import Config
from bottleneck.errors import UserError
from bottleneck.parallel.mesh import make_mesh
from bottleneck.runs import folder as run_folder
from bottleneck.sections import flatten
from bottleneck.training.step import make_train_program

# A small model that every field of it bears on; `CHANGED` has another value of each field.
BASE = {
    "data.tokenizer_vocab_size": 260,
    "model.vocab_size": 300,
    "model.d_model": 16,
    "model.n_heads": 4,
    "model.rotary_fraction": 0.5,
    "model.n_layers": 2,
    "model.head_rank": 4,
    "model.max_length": 32,
    "compute.attention": "blocks",
    "compute.loss_chunk": 32,
    "train.batch_size": 4,
    "train.sequence_length": 16,
    "train.bad_steps": 2,
    "probe.tokens": 64,
    "optimizer.warmup_steps": 3,
    "compute.mesh.fsdp": 1,
}

# Of what is computed by the compiled step and by what makes the parameters.
IN_THE_PROGRAM = {
    "seed": 1,
    "model.vocab_size": 301,
    "model.vocab_multiple": 256,
    "model.d_model": 32,
    "model.n_layers": 3,
    "model.n_heads": 2,
    "model.n_kv_heads": 2,
    "model.d_ff": 48,
    "model.head_rank": 5,
    "model.head_init": "normal",
    "model.tie_embeddings": True,
    "model.norm": "rmsnorm",
    "model.norm_epsilon": 1e-3,
    "model.mlp": "swiglu",
    "model.use_bias": False,
    "model.parallel_residual": False,
    "model.position": "learned",
    "model.rotary_fraction": 1.0,
    "model.rotary_theta": 500.0,
    "model.init_std": 0.5,
    "model.output_init_std": 0.5,
    "compute.dtype": "bfloat16",
    "compute.remat": "full",
    "compute.attention": "xla",
    "compute.loss_chunk": 16,
    "optimizer.learning_rate": 0.25,
    "optimizer.warmup_steps": 4,
    "optimizer.final_fraction": 0.25,
    "optimizer.beta1": 0.5,
    "optimizer.beta2": 0.5,
    "optimizer.epsilon": 0.25,
    "optimizer.weight_decay": 0.25,
    "optimizer.clip_norm": None,
    "train.steps": 900,
    "train.batch_size": 8,
    "train.sequence_length": 32,
    "compute.accumulation_steps": 2,
    "train.z_loss": 0.25,
    "train.skip_bad_batches": True,
}

# Of the data, of what is measured and kept, and of where a run is carried out.
ELSEWHERE = {
    "compute.compile_cache": None,
    "data.corpus": "known_rank",
    "data.paths": ("a",),
    "data.text_field": "a",
    "data.tfds_name": "a",
    "data.tfds_split": "a",
    "data.tfds_data_dir": "a",
    "data.language_rank": 3,
    "data.language_tokens": 64,
    "data.language_documents": 100,
    "data.language_seed": 1,
    "data.tokenizer": "a",
    "data.tokenizer_vocab_size": 270,
    "data.validation_fraction": 0.25,
    "data.cache_dir": "a",
    "model.max_length": 64,  # with learned positions it is in the program
    "train.log_every": 3,
    "train.bad_steps": 3,
    "compute.peak_flops": 1e9,
    "compute.mesh.replica": -1,
    "compute.mesh.fsdp": -1,
    "compute.mesh.tensor": -1,
    "probe.every": 3,
    "probe.tokens": 128,
    "probe.ranks": (1, 2),
    "checkpoint.every": 3,
    "checkpoint.keep_last": 3,
    "checkpoint.keep_every": 3,
    "checkpoint.steps": (3,),
}
CHANGED = IN_THE_PROGRAM | ELSEWHERE

# Another value of these continues a run; `check_same_corpus` sees what is in another tokenizer.
CONTINUES = {
    *(
        "compute.mesh.replica",
        "compute.mesh.fsdp",
        "compute.mesh.tensor",
        "compute.compile_cache",
        "data.cache_dir",
    ),
    *("data.tokenizer", "train.log_every", "compute.peak_flops", "train.bad_steps"),
    *("train.skip_bad_batches", "checkpoint.every", "checkpoint.keep_last"),
    *("checkpoint.keep_every", "checkpoint.steps"),
}


def config_with(**settings):
    fields = config_lib.base().to_dict()
    for name, value in (BASE | settings).items():
        *groups, key = name.split(".")
        functools.reduce(operator.getitem, groups, fields)[key] = value
    if settings.keys() & {"compute.mesh.replica", "compute.mesh.tensor"}:
        fields["compute"]["mesh"]["fsdp"] = 1
    return config_lib.parse(fields)


def program(config):
    """What is traced for one device, with the arrays that it holds."""
    mesh = make_mesh(config_lib.parse(config_lib.base()).compute.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        made = make_train_program(config, mesh)
        length, rows = config.train.sequence_length, config.train.batch_size
        batch = {
            name: jax.ShapeDtypeStruct((rows, length), dtype)
            for name, dtype in (("inputs", "int32"), ("targets", "int32"), ("weights", "float32"))
        }
        traced = [made.init.trace().jaxpr, made.step.trace(*made.abstract_state, batch).jaxpr]
    held = [np.asarray(const).tobytes() for closed in traced for const in closed.consts]
    return re.sub(r"0x[0-9a-f]+", "", str(traced)), held


@pytest.fixture(scope="module")
def base_program():
    return program(config_with())


def test_every_field_has_another_value_here():
    assert CHANGED.keys() == flatten(Config()).keys()
    base = flatten(config_with())
    assert [name for name, value in CHANGED.items() if value == base[name]] == []


@pytest.mark.parametrize("name", IN_THE_PROGRAM)
def test_the_field_changes_what_is_compiled(name, base_program):
    assert program(config_with(**{name: IN_THE_PROGRAM[name]})) != base_program


def test_the_other_fields_change_nothing_that_is_compiled(base_program):
    settings = {k: v for k, v in ELSEWHERE.items() if not k.startswith(("compute.mesh.", "data."))}
    assert program(config_with(**settings)) == base_program


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The folder of a run with the base config."""
    folder = tmp_path_factory.mktemp("begun")
    run_folder.write_config(folder, config_with(), {})
    return folder


def test_a_run_goes_on_with_its_own_config(begun):
    run_folder.check_continues(begun, config_with())


@pytest.mark.parametrize("name", CHANGED)
def test_another_value_of_a_field_is_another_run_unless_it_computes_the_same(name, begun):
    changed = config_with(**{name: CHANGED[name]})
    if name in CONTINUES:
        run_folder.check_continues(begun, changed)
    else:
        with pytest.raises(UserError, match=rf"holds a run with {name}=.*; now {name}="):
            run_folder.check_continues(begun, changed)
