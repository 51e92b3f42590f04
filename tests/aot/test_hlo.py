"""Collectives read from HLO text: every way of writing them, and what real programs do."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from bottleneck.aot.hlo import Shape, collectives, estimated_cycles
from bottleneck.config import (
    ComputeConfig,
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    ProbeConfig,
    TrainConfig,
)
from bottleneck.model.kernels.loss_pieces import RARELY
from bottleneck.parallel.mesh import make_mesh
from bottleneck.probes.programs import ProbePrograms
from bottleneck.training.step import make_train_program

MESH = {"replica": 2, "fsdp": 2, "tensor": 2}  # device 4·replica + 2·fsdp + tensor


def entry(*instructions):
    body = "\n".join(f"  {line}" for line in instructions)
    return f"HloModule m\n\nENTRY %main (p: f32[8]) -> f32[8] {{\n{body}\n}}\n"


def one(instruction, mesh=MESH, slices=None):
    (found,) = collectives(entry(instruction), mesh, slices)
    return found


def reduction(groups):
    return one(
        f"%r = f32[8]{{0}} all-reduce(%p), channel_id=1, replica_groups={groups}, to_apply=%add"
    )


@pytest.mark.parametrize(
    ("groups", "axes", "size"),
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", ("tensor",), 2),
        ("{{0,4},{1,5},{2,6},{3,7}}", ("replica",), 2),
        ("{{0,2,4,6},{1,3,5,7}}", ("replica", "fsdp"), 4),
        ("{}", ("replica", "fsdp", "tensor"), 8),
        ("[4,2]<=[8]", ("tensor",), 2),
        ("[2,4]<=[8]", ("fsdp", "tensor"), 4),
        ("[4,2]<=[4,2]T(1,0)", None, 2),
        ("[2,4]<=[4,2]T(1,0)", ("replica", "fsdp"), 4),
        ("[4,2]<=[2,2,2]T(0,2,1)", ("fsdp",), 2),
        ("mesh['a'=2,'b'=4] {'a'}", ("replica",), 2),
        ("mesh['a'=2,'b'=4] {'b'}", ("fsdp", "tensor"), 4),
        ("mesh['a'=8] {'a'}", ("replica", "fsdp", "tensor"), 8),
        ("mesh['a'=2,'b'=4] {'b':(1)2}", ("fsdp",), 2),
        ("mesh['a'=2,'b'=4] {'b':(2)2}", ("tensor",), 2),
        ("mesh['a'=2,'b'=4] {'a','b':(2)2}", ("replica", "tensor"), 4),
        ("mesh['a'=4,'b'=2], device_ids=([0,4,1,5,2,6,3,7]) {'b'}", ("replica",), 2),
        ("mesh['a'=4,'b'=2], device_ids=([4,2]<=[2,4]T(1,0)) {'b'}", ("replica",), 2),
        ("mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'a'}", ("fsdp", "tensor"), 4),
        ("mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'c'}", ("replica",), 2),
    ],
)
def test_each_way_of_writing_groups_names_the_axes_they_span(groups, axes, size):
    found = reduction(groups)
    assert found.group_size == size
    if axes is not None:
        assert found.axes == axes


def test_pairs_of_a_permutation_name_the_axis_of_its_ring():
    pairs = "{{0,2},{2,0},{1,3},{3,1},{4,6},{6,4},{5,7},{7,5}}"
    found = one(f"%c = bf16[4]{{0}} collective-permute(%p), source_target_pairs={pairs}")
    assert found.axes == ("fsdp",)
    assert found.ici_bytes == 8


def test_a_group_of_one_moves_nothing_and_is_left_out():
    groups = "{{0},{1},{2},{3},{4},{5},{6},{7}}"
    text = entry(f"%r = f32[8]{{0}} all-reduce(%p), replica_groups={groups}, to_apply=%add")
    assert collectives(text, MESH) == []


@pytest.mark.parametrize(
    ("instruction", "sent"),
    [
        # A ring of four: three quarters of 64 bytes pass through each device.
        ("f32[16]{0} all-gather(%p), replica_groups=[2,4]<=[8], dimensions={0}", 48),
        ("f32[4]{0} reduce-scatter(%p), replica_groups=[2,4]<=[8], to_apply=%add", 48),
        ("f32[16]{0} all-reduce(%p), replica_groups=[2,4]<=[8], to_apply=%add", 96),
        ("f32[16]{0} all-to-all(%p), replica_groups=[2,4]<=[8], dimensions={0}", 48),
        ("bf16[16]{0:T(8,128)(2,1)S(1)} all-gather(%p), replica_groups=[2,4]<=[8]", 24),
        ("(f32[8]{0}, f32[8]{0}) all-reduce(%p, %q), replica_groups=[2,4]<=[8], to_apply=%add", 96),
        ("(f32[4]{0}, f32[16]{0}) all-gather-start(%p), replica_groups=[2,4]<=[8]", 48),
        (
            "((f32[2]{0}, f32[2]{0}), (f32[8]{0}, f32[8]{0})) all-gather-start(%p, %q), "
            "replica_groups=[2,4]<=[8]",
            48,
        ),
        ("f32[16]{0} all-reduce-start(%p), replica_groups=[2,4]<=[8], to_apply=%add", 96),
        (
            "(f32[16]{0}, f32[16]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%p), "
            "source_target_pairs={{0,1},{1,0}}",
            64,
        ),
        ("pred[64]{0} all-gather(%p), replica_groups=[2,4]<=[8], dimensions={0}", 48),
    ],
)
def test_bytes_are_those_that_a_ring_sends(instruction, sent):
    assert one(f"ROOT %x = {instruction}").ici_bytes == sent


@pytest.mark.parametrize(
    ("op", "result", "ici", "dcn"),
    [
        # Four devices, two in each of two slices, and 64 bytes in all: half of it is reduced or
        # gathered inside the slice, and a half of the other half goes between.
        ("all-gather", "f32[16]", 32, 16),
        ("reduce-scatter", "f32[4]", 32, 16),
        ("all-reduce", "f32[16]", 64, 32),
        # Of four parts one goes to the neighbour and two to the other slice.
        ("all-to-all", "f32[16]", 16, 32),
    ],
)
def test_between_slices_goes_only_what_the_slice_has_not_reduced(op, result, ici, dcn):
    found = one(
        f"%x = {result}{{0}} {op}(%p), replica_groups={{{{0,1,2,3}}}}",
        {"replica": 2, "fsdp": 2},
        [0, 0, 1, 1],
    )
    assert (found.n_slices, found.ici_bytes, found.dcn_bytes) == (2, ici, dcn)


def test_a_send_to_other_slices_counts_as_the_reduction_that_it_is_part_of():
    found = one(
        "%s = (bf16[120,8]{1,0}, u32[]{:S(2)}, token[]) send(%p, %t), is_host_transfer=true, "
        'frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}',
        {"replica": 2, "fsdp": 2},
        [0, 0, 1, 1],
    )
    assert (found.op, found.axes) == ("all-reduce", ("replica",))
    # Two devices with the same place reduce a half each and send it back.
    assert (found.ici_bytes, found.dcn_bytes) == (0, 120 * 8 * 2)


LOOPS = """HloModule m

%inner_cond (p: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%fused (p: f32[8]) -> f32[8] {
  ROOT %g = f32[8]{0} all-gather(%p), channel_id=7, replica_groups={{0,1}}, dimensions={0}
}

%inner (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %f = f32[8]{0} fusion(%x), kind=kCustom, calls=%fused
  ROOT %t = (s32[], f32[8]{0}) tuple(%i, %f)
}

%outer_cond (p: (s32[], f32[8])) -> pred[] {
  ROOT %c = pred[] fusion(%p), kind=kLoop, calls=%compare
}

%outer (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  ROOT %w = (s32[], f32[8]{0}) while(%t), condition=%inner_cond, body=%inner
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %w2 = (s32[], f32[8]{0}) while(%t), condition=%outer_cond, body=%outer, KNOWN_3
  ROOT %f2 = f32[8]{0} fusion(%x), kind=kCustom, calls=%fused
}
""".replace("KNOWN_3", 'backend_config={"known_trip_count":{"n":"3"}}')


def test_loops_multiply_and_every_caller_counts():
    (found,) = collectives(LOOPS, {"fsdp": 2})
    assert found.count == 3 * 5 + 1


ASYNC = """HloModule m

%start (p: f32[4]) -> (f32[4], f32[8]) {
  %g1 = f32[8]{0} all-gather(%p), channel_id=1, PIECE_OF_4
  ROOT %c = (f32[4]{0}, f32[8]{0}) custom-call(%g1), custom_call_target="AsyncCollectiveStart"
}

%piece (p: f32[4]) -> (f32[4], f32[8]) {
  %g2 = f32[8]{0} all-gather(%p), channel_id=1, PIECE_OF_4
  ROOT %t = (f32[4]{0}, f32[8]{0}) tuple(%p, %g2)
}

%done (p: f32[4]) -> f32[8] {
  %g3 = f32[8]{0} all-gather(%p), channel_id=1, PIECE_OF_4
  ROOT %d = f32[8]{0} custom-call(%p, %g3), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (p: f32[4]) -> f32[8] {
  %s = (f32[4]{0}, f32[8]{0}) fusion(%p), kind=kCustom, calls=%start
  %a = (f32[4]{0}, f32[8]{0}) fusion(%s), kind=kOutput, calls=%piece
  %b = f32[8]{0} fusion(%a), kind=kCustom, calls=%done
  ROOT %r = f32[4]{0} reduce-scatter(%b), channel_id=1, replica_groups={{0,1}}, to_apply=%add
}
""".replace("PIECE_OF_4", 'replica_groups={{0,1}}, frontend_attributes={chain_id="4"}')


def test_pieces_of_an_asynchronous_collective_count_once_though_others_share_its_channel():
    found = collectives(ASYNC, {"fsdp": 2})
    assert [(each.op, each.count) for each in found] == [("all-gather", 1), ("reduce-scatter", 1)]


def test_a_sum_in_a_loop_of_a_compiled_program_counts_as_often_as_it_runs():
    mesh = jax.make_mesh((2, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)

    def local(x):
        return jax.lax.scan(lambda c, _: (jax.lax.psum(c * x, "tensor"), None), x, length=7)[0]

    spec = PartitionSpec("fsdp", "tensor")
    program = jax.jit(
        jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    )
    text = program.lower(jnp.ones((6, 10))).compile().as_text()
    (found,) = collectives(text, mesh.shape)
    assert found.shapes == (Shape("f32", (3, 5), 60),)
    assert (found.op, found.axes, found.count) == ("all-reduce", ("tensor",), 7)
    assert found.ici_bytes == 60  # 2 · 60 · (2 − 1)/2


V, D, R = 2048, 64, 16


def config_of(rank, sizes, tied=False):
    return Config(
        data=DataConfig(tokenizer_vocab_size=1000),
        model=ModelConfig(
            vocab_size=V,
            d_model=D,
            d_ff=192,
            n_heads=4,
            n_layers=2,
            head_rank=rank,
            tie_embeddings=tied,
        ),
        train=TrainConfig(steps=10, batch_size=8, sequence_length=64),
        compute=ComputeConfig(loss_chunk=32, mesh=MeshConfig(*sizes)),
        probe=ProbeConfig(tokens=512, ranks=(4, 16)),
    )


@functools.cache
def collectives_of_train_step(rank, sizes, tied=False):
    config = config_of(rank, sizes, tied)
    mesh = make_mesh(config.compute.mesh)
    program = make_train_program(config, mesh)
    with jax.set_mesh(mesh):
        return collectives(program.compile(8, 64).as_text(), mesh.shape)


@pytest.mark.parametrize(
    ("sizes", "tied"), [((1, 4, 1), False), ((1, 2, 2), False), ((1, 2, 2), True)]
)
@pytest.mark.parametrize("rank", [None, R])
def test_no_device_gathers_the_logits_and_the_head_at_most_factored(rank, sizes, tied):
    rows = V // sizes[2]  # of one device
    whole = 0
    gathers = [
        each
        for each in collectives_of_train_step(rank, sizes, tied)
        if each.op in ("all-gather", "all-to-all")
    ]
    assert gathers  # of the layers' weights
    for each in gathers:
        for shape in each.shapes:
            if shape.dimensions == (rows, rank):
                whole += each.count
                continue
            # What is gathered of a full head is a block of its rows, and of the logits nothing.
            assert not {V, rows} & set(shape.dimensions), each
            assert math.prod(shape.dimensions) < rows * (rank or D), each
    assert whole == (0 if rank is None else 1)


@pytest.mark.parametrize(
    ("rank", "sizes"),
    [pytest.param(None, (1, 4, 1), marks=pytest.mark.slow), (None, (1, 2, 2)), (R, (1, 2, 2))],
)
def test_no_probe_gathers_the_logits_and_the_head_at_most_factored(rank, sizes):
    config = config_of(rank, sizes)
    mesh = make_mesh(config.compute.mesh)
    params = make_train_program(config, mesh).abstract_state[0]
    rows = V // sizes[2]
    with jax.set_mesh(mesh):
        lowered = ProbePrograms(config, mesh, n_sequences=8).lower(params)
        for name, program in lowered.items():
            for each in collectives(program.compile().as_text(), mesh.shape):
                for shape in each.shapes:
                    if shape.dimensions == (rows, rank):
                        continue
                    assert not {V, rows} & set(shape.dimensions), (name, each)
                    if each.op in ("all-gather", "all-to-all"):
                        assert math.prod(shape.dimensions) < rows * (rank or D), (name, each)


@pytest.mark.parametrize("rank", [None, R])
def test_copies_of_the_parameters_exchange_nothing_but_sums(rank):
    between = [
        each for each in collectives_of_train_step(rank, (2, 2, 1)) if "replica" in each.axes
    ]
    assert {each.op for each in between} == {"all-reduce"}
    # Of gradients, each device of its part: a half of the head's columns.
    assert all(
        math.prod(shape.dimensions) <= V * D // 2 for each in between for shape in each.shapes
    )


@pytest.mark.parametrize(("rank", "is_split"), [(R, True), (R - 1, False)])
def test_a_factored_head_is_shared_out_where_its_rank_divides(rank, is_split):
    config = config_of(rank, (1, 2, 2))
    params, opt_state = make_train_program(config, make_mesh(config.compute.mesh)).abstract_state
    rows = params["head"]["rows"]
    assert rows.sharding.shard_shape(rows.shape) == (V // 2, rank // 2 if is_split else rank)
    moments = [leaf for leaf in jax.tree.leaves(opt_state) if leaf.shape == rows.shape]
    assert len(moments) == 2 and all(leaf.sharding == rows.sharding for leaf in moments)


@pytest.mark.parametrize("sizes", [(1, 4, 1), (1, 2, 2)])
def test_a_full_head_is_gathered_by_blocks_and_twice(sizes):
    # Blocks have a multiple of 256 rows, and no other array here has.
    blocks = [
        (each, shape.dimensions[0])
        for each in collectives_of_train_step(None, sizes)
        for shape in each.shapes
        if each.op == "all-gather" and len(shape.dimensions) == 2 and shape.dimensions[0] % 256 == 0
    ]
    assert {each.axes for each, _ in blocks} == {("fsdp",)}
    # One pass for the log-sum-exp and one for the gradient, over this device's rows.
    assert sum(each.count * rows for each, rows in blocks) == 2 * V // sizes[2]


# As a TPU's compiler writes it: the all-reduce is padded, and never made whole.
SCATTER = """
%all-reduce-scatter.2 (input: bf16[30]) -> bf16[8] {
  %input = bf16[30]{0} parameter(0)
  %pad = bf16[32]{0} pad(%input), padding=0_2
  %all-reduce.1 = bf16[32]{0} all-reduce(%pad), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %slice.1 = bf16[8]{0} dynamic-slice(%all-reduce.1), dynamic_slice_sizes={8}
}

ENTRY %main (p: bf16[30]) -> bf16[8] {
  ROOT %fusion = bf16[8]{0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.2
}
"""


def test_a_fused_reduce_scatter_sends_half_of_what_its_all_reduce_would():
    (found,) = collectives(SCATTER, {"fsdp": 4})
    assert (found.op, found.count, found.ici_bytes) == ("reduce-scatter", 1, 64 * 3 / 4)


SPARSE_CORE = """
%on_sparse_core (p: s32[1,2,256]) -> s32[8,2,256] {
  %p = s32[1,2,256] parameter(0)
  ROOT %all-gather = s32[8,2,256] all-gather(%p), replica_groups=[1,8]<=[8], dimensions={0}
}, execution_thread="sparsecore"

ENTRY %main (p: s32[1,2,256]) -> s32[8,2,256] {
  %p = s32[1,2,256] parameter(0)
  ROOT %c = s32[8,2,256] custom-call(%p), custom_call_target="X", called_computations={CALLED}
}
"""


def test_what_a_tpu7x_leaves_to_its_sparse_core_counts():
    (gather,) = collectives(SPARSE_CORE.replace("CALLED", "%on_sparse_core"), MESH)
    assert (gather.op, gather.count, gather.group_size) == ("all-gather", 1, 8)


def test_a_collective_that_seems_never_to_run_is_an_error():
    with pytest.raises(AssertionError, match="how is on_sparse_core called"):
        collectives(SPARSE_CORE.replace("CALLED", "%main"), MESH)


CYCLES = """
%cond (s: s32[]) -> pred[] {
  %s = s32[] parameter(0)
  %n = s32[] constant(5)
  ROOT %less = pred[] compare(%s, %n), direction=LT
}

%body (s: s32[]) -> s32[] {
  %s = s32[] parameter(0)
  ROOT %f = s32[] fusion(%s), calls=%fused, backend_config={"estimated_cycles":"100"}
}

%exception (s: s32[]) -> s32[] {
  %s = s32[] parameter(0)
  ROOT %g = s32[] fusion(%s), calls=%fused, backend_config={"estimated_cycles":"1000000"}
}

%rule (s: s32[]) -> s32[] {
  ROOT %s = s32[] parameter(0)
}

ENTRY %main (s: s32[]) -> s32[] {
  %s = s32[] parameter(0)
  %kernel = s32[] custom-call(%s), custom_call_target="tpu_custom_call"
  %copy = s32[] copy(%kernel), backend_config={"estimated_cycles":"7"}
  %loop = s32[] while(%copy), condition=%cond, body=%body
  ROOT %c = s32[] conditional(%p, %loop, %loop), branch_computations={%rule, %exception}, NAMED
}
"""


@pytest.mark.parametrize(("scope", "more"), [("often", 1_000_000), (RARELY, 0)])
def test_cycles_are_added_up_over_the_turns_of_loops_without_what_runs_rarely(scope, more):
    named = f'metadata={{op_name="jit(step)/{scope}/cond"}}'
    assert estimated_cycles(CYCLES.replace("NAMED", named)) == 5 * 100 + 7 + more
