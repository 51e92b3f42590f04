"""The rehearsal: its arithmetic by hand, what it says where nothing fits, and the real compiler."""

import dataclasses
import importlib.util
import io
import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import rich.console
from jax.extend.core import jaxprs_in_params

from bottleneck.aot import compile_check
from bottleneck.aot.compile_check import (
    TRAIN_STEP,
    Buffer,
    Memory,
    ProgramReport,
    Rehearsal,
    largest_buffers,
    topology_devices,
)
from bottleneck.aot.hlo import Collective, Shape
from bottleneck.aot.report import advice, as_json, show
from bottleneck.aot.roofline import hbm_traffic, step_roofline
from bottleneck.commands import compile as compile_command
from bottleneck.config import ComputeConfig, Config, DataConfig, ModelConfig, TrainConfig
from bottleneck.errors import UserError
from bottleneck.model import transformer
from bottleneck.parallel.chips import Chip
from bottleneck.training.step import make_gradient

ROOT = Path(__file__).parents[2]

# D 8, F 32, 3 layers, V 384, 2 heads; a step of 8 × 16 = 128 tokens.
CONFIG = Config(
    data=DataConfig(tokenizer_vocab_size=257),
    model=ModelConfig(
        vocab_size=300,
        vocab_multiple=128,
        d_model=8,
        n_heads=2,
        n_layers=3,
        use_bias=False,
        norm="rmsnorm",
        rotary_fraction=1.0,
    ),
    train=TrainConfig(steps=10, batch_size=8, sequence_length=16),
    compute=ComputeConfig(loss_chunk=16, remat="full", dtype="bfloat16", accumulation_steps=2),
)
MESH = {"replica": 2, "fsdp": 2, "tensor": 1}
CHIP = Chip(("none",), 1e6, 10**6, 1e5, 1e4, 1e3)

# Multiply-adds of one token's forward pass: a layer's matrices are 12·D²; scores and mixing 2·L·D
# for each layer; the head V·D.
LAYERS, SQUARE, HEAD = 3 * 12 * 64, 3 * 2 * 16 * 8, 384 * 8
FULL = 3 + 7 / 12
ONE_PASS = {"replica": 4, "fsdp": 1, "tensor": 1}


def changed(**fields):
    """CONFIG with other fields of `compute`."""
    return dataclasses.replace(CONFIG, compute=dataclasses.replace(CONFIG.compute, **fields))


RANK_2 = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, head_rank=2))


def limits(config=CONFIG, mesh=MESH, collectives=(), flash_attention=False):
    return step_roofline(config, mesh, CHIP, collectives, flash_attention=flash_attention)


@pytest.mark.parametrize(
    ("config", "mesh", "flash_attention", "hardware"),
    [
        # Full remat makes 7 of the 12·D² twice; a full head over fsdp its logits.
        (CONFIG, MESH, False, FULL * LAYERS + 4 * SQUARE + 4 * HEAD),
        (CONFIG, ONE_PASS, False, FULL * LAYERS + 4 * SQUARE + 3 * HEAD),
        (changed(remat="none"), MESH, False, 3 * LAYERS + 3 * SQUARE + 4 * HEAD),
        (changed(remat="dots"), MESH, False, 3 * LAYERS + 4 * SQUARE + 4 * HEAD),
        # Of the 12·D² the MLP's first product has 4.
        (changed(remat="attention"), MESH, False, (3 + 4 / 12) * LAYERS + 4 * SQUARE + 4 * HEAD),
        (
            changed(remat="attention"),
            MESH,
            True,
            (3 + 4 / 12) * LAYERS + (2 + 7) / 2 * SQUARE / 2 + 4 * HEAD,
        ),
        # Half the square; two products forward, twice with remat, and seven backward.
        (CONFIG, MESH, True, FULL * LAYERS + (2 + 2 + 7) / 2 * SQUARE / 2 + 4 * HEAD),
        (changed(remat="none"), MESH, True, 3 * LAYERS + (2 + 7) / 2 * SQUARE / 2 + 4 * HEAD),
        (RANK_2, MESH, False, FULL * LAYERS + 4 * SQUARE + 3 * 2 * (384 + 8)),
    ],
)
def test_hardware_flops_count_what_is_computed_again(config, mesh, flash_attention, hardware):
    found = limits(config, mesh, flash_attention=flash_attention)
    assert found.hardware_flops == 2 * hardware * 128 / 4


def product_flops(program):
    """Of all matrix products of a traced program, loops multiplied."""
    total = 0
    for step in program.eqns:
        if step.primitive.name == "dot_general":
            ((contracted, _), _), left = step.params["dimension_numbers"], step.invars[0].aval
            depth = math.prod(left.shape[axis] for axis in contracted)
            total += 2 * depth * math.prod(step.outvars[0].aval.shape)
        times = step.params["length"] if step.primitive.name == "scan" else 1
        total += times * sum(map(product_flops, jaxprs_in_params(step.params)))
    return total


@pytest.mark.parametrize("remat", ["none", "dots", "attention", "full"])
@pytest.mark.parametrize(
    "family",
    [{}, {"parallel_residual": False}, {"mlp": "swiglu", "d_ff": 24, "n_kv_heads": 1}],
)
def test_hardware_flops_are_those_of_the_gradient_as_jax_traces_it(family, remat):
    model = dataclasses.replace(CONFIG.model, **family)
    config = dataclasses.replace(changed(remat=remat, attention="xla"), model=model)
    params = jax.eval_shape(lambda: transformer.init_params(config.model, jax.random.key(0)))
    batch = {
        "inputs": jax.ShapeDtypeStruct((8, 16), jnp.int32),
        "targets": jax.ShapeDtypeStruct((8, 16), jnp.int32),
        "weights": jax.ShapeDtypeStruct((8, 16), jnp.float32),
    }
    traced = jax.make_jaxpr(make_gradient(config))(params, batch)
    counted = limits(config, {"replica": 1, "fsdp": 1, "tensor": 1}).hardware_flops
    assert product_flops(traced.jaxpr) == pytest.approx(counted)


def test_flops_of_mfu_are_three_forward_passes_with_half_the_square():
    assert limits().model_flops == 2 * 3 * (LAYERS + SQUARE / 2 + HEAD) * 128 / 4


def test_hbm_traffic_is_the_sum_of_its_parts():
    # A device has half the parameters: 384·8 twice, 3 layers of 12·64 and two norms of 8, one more.
    own = (2 * 384 * 8 + 3 * (12 * 64 + 2 * 8) + 8) / 2
    tokens, micro_batches = 32, 2
    parts = [
        micro_batches * (2 + 7 / 12) * 2 * 3 * 12 * 64,  # weights, in bfloat16, in each pass
        4 * own * (1 + 2),  # gradients: written, then read and written
        4 * own * (1 + 3 + 3),  # AdamW
        2 * 2 * tokens * 3 * 8,  # inputs of layers, in and out
        tokens * 384 * (2 * 8 + 3 * 2),  # logits twice, their gradient once
        8 * 2 * tokens * 8 / micro_batches,  # gradient of hidden states, in two chunks of 16
    ]
    assert hbm_traffic(CONFIG, MESH) == sum(parts)


def test_traffic_of_a_whole_head_has_its_rows_gradient_in_every_chunk():
    fewer = hbm_traffic(changed(loss_chunk=16), ONE_PASS)
    more = hbm_traffic(changed(loss_chunk=8), ONE_PASS)
    assert more - fewer == 8 * 384 * 8 * (32 / 8 - 32 / 16)


def test_the_longest_part_binds_and_gives_the_ceiling():
    shapes = (Shape("f32", (250,), 1000),)
    inside = Collective("all-gather", shapes, ("fsdp",), 2, 1, count=12)
    between = Collective("all-reduce", shapes, ("replica",), 2, 2, count=6)
    found = limits(collectives=[inside, between])
    assert found.seconds["ICI"] == 12 * 500 / 1e4
    assert found.seconds["DCN"] == 6 * 1000 / 1e3
    assert found.seconds["HBM"] == hbm_traffic(CONFIG, MESH) / 1e5
    assert found.seconds["compute"] == found.hardware_flops / 1e6
    assert (found.binds, found.step_seconds) == ("DCN", 6.0)
    assert found.mfu_ceiling == pytest.approx(found.model_flops / 1e6 / 6.0)


BUFFERS = """BufferAssignment:
allocation 0: size 4096, color 1, page 0, preallocated-temp:
 value: <1 vmem @1> (size=4096,offset=0): f32[1024]{0:S(1)}
allocation 1: size 512, page 0, parameter 0, shape at ShapeIndex {}:
 value: <2 p @0> (size=512,offset=0): f32[128]{0}
allocation 2: size 3000, page 0, preallocated-temp:
 value: <3 fusion.1{0} @0> (size=1000,offset=0): f32[250]{0}
 value: <4 fusion.2 @0> (size=900,offset=100): f32[225]{0}
 value: <5 fusion.3{} (phi) @0> (size=2000,offset=1000): bf16[10,100]{1,0:T(8,128)(2,1)}
"""
HLO = """
  %fusion.3 = bf16[10,100]{1,0} fusion(%p), metadata={op_name="jit(step)/while/body/dot_general"}
"""


def test_the_largest_buffers_are_those_at_places_of_their_own():
    assert largest_buffers(BUFFERS, HLO) == [
        Buffer(2000, "bf16[10,100]", "jit(step)/while/body/dot_general"),
        Buffer(1000, "f32[250]", "fusion.1"),  # fusion.2 has its place at another time
    ]


def test_memory_is_read_from_the_compilers_plan():
    assert compile_check._memory(BUFFERS, None) == Memory(arguments=512, temporaries=3000, code=0)
    result = "allocation 3: size 64, output shape is |f32[16]|, maybe-live-out:\n"
    result += (
        "allocation 4: size 32, parameter 1, shape |f32[8]| at ShapeIndex {}, maybe-live-out:\n"
    )
    found = compile_check._memory(BUFFERS + result, None)
    assert found == Memory(arguments=512 + 32, temporaries=3000 + 64, code=0)


def rehearsal(fits, memory, config=CONFIG):
    report = ProgramReport(
        fits=fits,
        memory=memory,
        largest=(Buffer(2000, "f32[500]", "jit(step)/dot_general"),),
        collectives=(Collective("all-reduce", (Shape("f32", (2,), 8),), ("fsdp",), 2, 1, 5),),
        cycles=2_345_678 if fits else None,
        has_flash_attention=False,
        compile_seconds=1.0,
    )
    return Rehearsal("v5e:2x2", 1, MESH, CHIP, {TRAIN_STEP: report}, limits(config))


NOTHING_FITS = rehearsal(False, Memory(arguments=600_000, temporaries=150_000, code=0))


def test_what_does_not_fit_says_by_how_much_and_what_to_change():
    output = io.StringIO()
    twice = dataclasses.replace(CONFIG.train, batch_size=16)
    config = dataclasses.replace(changed(remat="none"), train=twice)
    show(config, NOTHING_FITS, rich.console.Console(file=output, width=200))
    text = output.getvalue()
    assert "does not fit" in text
    assert "f32[500]" in text and "jit(step)/dot_general" in text
    assert "config.compute.loss_chunk=16" in text  # 4·16·384 bytes of 150,000
    assert "config.compute.remat=none to attention" in text
    assert "config.compute.mesh.fsdp=2" in text  # 600,000 of 1,000,000 bytes are parameters
    # A device has 2 sequences of a micro-batch; half of that is enough.
    assert "config.compute.accumulation_steps=2 to 4" in text


def test_enough_micro_batches_are_proposed_at_once():
    train = dataclasses.replace(CONFIG.train, batch_size=128)
    config = dataclasses.replace(CONFIG, train=train)
    tight = rehearsal(False, Memory(arguments=0, temporaries=3_900_000, code=0))
    assert any("accumulation_steps=2 to 8" in line for line in advice(config, tight))


def test_what_fits_says_how_long_its_computing_takes():
    output = io.StringIO()
    show(CONFIG, rehearsal(True, Memory(1, 1, 1)), rich.console.Console(file=output, width=200))
    assert "expects 2.3 million cycles, without" in output.getvalue()


def test_what_fits_needs_no_advice():
    assert advice(CONFIG, rehearsal(True, Memory(1, 1, 1))) == []


def test_json_holds_what_is_printed():
    report = json.loads(json.dumps(as_json(CONFIG, NOTHING_FITS)))
    assert report["fits"] is False
    assert report["advice"]
    step = report["programs"][TRAIN_STEP]
    assert step["memory"]["peak"] == 750_000
    assert step["collectives"] == [
        {"op": "all-reduce", "axes": ["fsdp"], "count": 5, "ici_bytes": 40.0, "dcn_bytes": 0.0}
    ]
    assert report["roofline"]["binds"] == "HBM"


@pytest.mark.parametrize(("fits", "code"), [(True, 0), (False, 1)])
def test_the_exit_code_says_whether_it_fits(fits, code, monkeypatch, capsys):
    memory = Memory(arguments=600_000, temporaries=150_000, code=0)
    monkeypatch.setattr(compile_check, "rehearse", lambda *_, **__: rehearsal(fits, memory))
    monkeypatch.setattr(compile_command, "ENVIRONMENT", {})
    argv = [f"--config={ROOT / 'configs/nano.py'}", "--topology=v5e:2x2", "--json"]
    assert compile_command.main(argv) == code
    assert json.loads(capsys.readouterr().out)["fits"] is fits


def test_without_the_compiler_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install -e '.\[tpu\]'"):
        topology_devices("v5e:2x2")


def run(*flags):
    command = [sys.executable, "-m", "bottleneck", "compile", f"--config={ROOT}/configs/nano.py"]
    return subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True)


needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the [tpu] extra"
)


@needs_compiler
def test_an_impossible_slice_is_one_line():
    done = run("--topology=v5e:3x3")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --topology=v5e:3x3: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@needs_compiler
def test_the_real_compiler_says_what_a_step_needs():
    done = run("--topology=v5e:2x2", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    report = json.loads(done.stdout)
    memory = report["programs"][TRAIN_STEP]["memory"]
    assert 0 < memory["arguments"] < memory["peak"] < report["chip"]["hbm_bytes"]
    assert report["programs"][TRAIN_STEP]["cycles"] > 0
    found = report["programs"][TRAIN_STEP]["collectives"]
    assert {axis for each in found for axis in each["axes"]} == {"fsdp"}
    assert all(each["dcn_bytes"] == 0 for each in found)


@pytest.mark.slow
@needs_compiler
def test_the_real_compiler_joins_slices_along_replica():
    done = run("--topology=v5e:2x2", "--num_slices=2", "--config.compute.mesh.replica=2", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["programs"][TRAIN_STEP]["collectives"]
    for each in found:
        assert (each["dcn_bytes"] > 0) == ("replica" in each["axes"])
    assert any(each["dcn_bytes"] > 0 for each in found)


@pytest.mark.slow
@needs_compiler
def test_the_real_compiler_says_what_does_not_fit():
    done = run("--topology=v5e:2x2", "--config.train.batch_size=131072", "--json")
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    step = report["programs"][TRAIN_STEP]
    assert step["memory"]["temporaries"] > report["chip"]["hbm_bytes"]
    assert step["largest"]
    assert any("accumulation_steps" in line for line in report["advice"])
