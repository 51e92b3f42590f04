"""From a config to the cells of a sweep: what varies, how cells are called, what is refused."""

import math

import pytest

from bottleneck.__main__ import main
from bottleneck.commands.flags import load_cells
from bottleneck.config import base, parse
from bottleneck.errors import UserError
from bottleneck.sweep.cells import expand, product, zipped

FIELDS = base().to_dict()


def test_a_product_has_every_combination_the_last_part_varying_fastest():
    cells = product({"seed": (1, 2)}, zipped({"a": (3, 4), "b": (5, 6)}), [{"c": 7}, {}])
    assert [tuple(cell.values()) for cell in cells] == [
        *((1, 3, 5, 7), (1, 3, 5), (1, 4, 6, 7), (1, 4, 6)),
        *((2, 3, 5, 7), (2, 3, 5), (2, 4, 6, 7), (2, 4, 6)),
    ]


def test_fields_zipped_take_their_values_together_and_must_have_as_many():
    assert zipped({"a": (1, 2), "b": "xy"}) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    with pytest.raises(UserError, match="a has 2, b has 3"):
        zipped({"a": (1, 2), "b": (1, 2, 3)})


def test_a_field_in_two_parts_of_a_product_is_refused():
    with pytest.raises(UserError, match=r"config\.seed varies in two parts"):
        product({"seed": (1, 2)}, {"seed": (3,)})


def test_a_cell_is_the_config_with_its_overrides_and_all_else_unchanged():
    cells = expand(FIELDS, product({"model.head_rank": (8, None), "seed": (0, 3)}))
    assert [cell.index for cell in cells] == [0, 1, 2, 3]
    expected = base()
    expected.model.head_rank, expected.seed = 8, 3
    assert cells[1].config == parse(expected)


def test_names_tell_the_cells_apart_without_what_follows_from_the_rest():
    widths = zipped({"model.d_model": (64, 128), "model.n_heads": (2, 4)})
    cells = expand(FIELDS, product(widths, {"model.head_rank": (8, None), "train.steps": (50,)}))
    assert [cell.name for cell in cells] == [
        "d_model=64,head_rank=8",
        "d_model=64,head_rank=None",
        "d_model=128,head_rank=8",
        "d_model=128,head_rank=None",
    ]


def test_names_are_folder_names_whatever_the_values():
    sweep = [
        {"probe.every": 5, "checkpoint.every": 5},
        {"probe.every": 5, "data.paths": ("/a b", "c"), "checkpoint.every": 6},
        {"optimizer.learning_rate": 1e-4},
    ]
    assert [cell.name for cell in expand(FIELDS, sweep)] == [
        "probe.every=5,checkpoint.every=5",
        "probe.every=5,checkpoint.every=6",
        "probe.every=base,checkpoint.every=base",
    ]
    (name,) = {cell.name for cell in expand(FIELDS, sweep[1:2])}
    assert name == "run"
    texts = expand(FIELDS, [{"data.paths": ("/a b", "c")}, {"data.paths": ("d",)}])
    assert [cell.name for cell in texts] == ["paths=-a-b+c", "paths=d"]


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ([], r"get_sweep\(\) must return a list of dicts"),
        ({"seed": (1, 2)}, r"get_sweep\(\) must return a list of dicts"),
        ([{"seed": 1}, {"seed": -1}], "cell 1, seed=-1: config.seed=-1 is not allowed"),
        ([{"seed": 1}, {"model.head_rank": 257}], "cell 1, .*head_rank=257 is not allowed"),
        ([{"model.head_rnk": 4}], "config.model.head_rnk is not a field; did you mean head_rank"),
        ([{"modl.head_rank": 4}], "config.modl.head_rank is not a field"),
        ([{"seed": 1}, {"seed": 2}, {"seed": 1}], "cells 0 and 2 are the same, seed=1"),
        ([{"seed": 0}, {}], "cells 0 and 1 are the same"),
    ],
)
def test_a_sweep_that_is_wrong_is_one_line_that_names_the_cell(sweep, message):
    with pytest.raises(UserError, match=message) as raised:
        expand(FIELDS, sweep)
    assert "\n" not in str(raised.value)


def test_tokens_and_flops_of_a_cell_are_those_of_its_whole_training():
    sweep = [
        {
            "model.d_model": 64,
            "model.n_layers": 3,
            "model.vocab_size": 8192,
            "model.head_rank": 16,
            "train.steps": 10,
            "train.batch_size": 4,
            "train.sequence_length": 32,
        }
    ]
    (cell,) = expand(FIELDS, sweep)
    assert cell.tokens == 10 * 4 * 32
    layers, head = 3 * 12 * 64 * 64, 16 * (64 + 8192)
    attention = 3 * 2 * 2 * 64 * (32 / 2)  # scores and mixing, over half of the positions
    expected = 3 * cell.tokens * (2 * layers + 2 * head + attention)
    assert math.isclose(cell.flops, expected, rel_tol=1e-12)


SWEEP = """
from bottleneck.config import base
from bottleneck.sweep.cells import product

def get_config(width="64"):
    config = base()
    config.model.d_model = int(width)
    return config

def get_sweep(width="64"):
    return product({{"model.head_rank": (4, {last})}})
"""


@pytest.fixture
def sweep_file(tmp_path):
    def write(last="None"):
        path = tmp_path / "sweep.py"
        path.write_text(SWEEP.format(last=last))
        return path

    return write


def test_a_sweep_takes_the_argument_of_its_file_and_overrides_that_all_cells_share(sweep_file):
    cells = load_cells(f"{sweep_file('int(width)')}:32", {"train.steps": "7", "seed": "5"})
    assert [cell.config.model.head_rank for cell in cells] == [4, 32]
    assert {(c.config.model.d_model, c.config.train.steps, c.config.seed) for c in cells} == {
        (32, 7, 5)
    }


@pytest.mark.parametrize(
    ("last", "arguments", "message"),
    [
        ("None", ["--config.model.head_rank=8"], "model.head_rank varies over the sweep"),
        ("65", [], "cell 1, head_rank=65: config.model.head_rank=65 is not allowed"),
        ("1 / 0", [], "ZeroDivisionError at sweep.py:11"),
        ("None", ["--index=2"], "--index=2 is not allowed; it must be from 0 to 1"),
        ("None", ["--parallel=0"], "--parallel=0 is not allowed"),
        ("None", ["--config=configs/nano.py"], r"nano.py has no get_sweep\(\)"),
    ],
)
def test_a_wrong_command_is_one_line_and_nothing_is_run(
    sweep_file, tmp_path, capsys, last, arguments, message
):
    root = tmp_path / "root"
    command = ["sweep", f"--config={sweep_file(last)}", f"--workdir={root}", *arguments]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert message.replace(r"\(\)", "()") in error and error.count("\n") == 1
    assert not root.exists()


def test_list_prints_each_cell_with_its_cost_and_the_sum_and_needs_no_folder(sweep_file, capsys):
    assert main(["sweep", f"--config={sweep_file()}", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = load_cells(str(sweep_file()), {})
    for line, cell in zip(lines[1:3], cells, strict=True):
        index, name, parameters, tokens, flops = line.split()
        assert (int(index), name) == (cell.index, cell.name)
        assert int(parameters.replace(",", "")) == cell.parameters.total
        assert int(tokens.replace(",", "")) == cell.tokens
        assert float(flops) == pytest.approx(cell.flops, rel=0.01)
    *_, tokens, flops = lines[-1].split()
    assert lines[-1].split()[:2] == ["2", "cells"]
    assert int(tokens.replace(",", "")) == sum(cell.tokens for cell in cells)
    assert float(flops) == pytest.approx(sum(cell.flops for cell in cells), rel=0.01)
