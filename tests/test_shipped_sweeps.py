"""The sweeps in configs/: what they expand to, and that their smallest cell trains."""

import dataclasses
from pathlib import Path

import pytest

from bottleneck import runs
from bottleneck.commands.flags import load_cells, load_config

CONFIGS = Path(__file__).parents[1] / "configs"
N_CELLS = {"head_rank": 18, "ladder": 7, "saturation": 24}


def cells_of(name, **assigned):
    return load_cells(str(CONFIGS / f"{name}.py"), assigned)


def test_every_sweep_in_configs_is_known_here():
    sweeps = {p.stem for p in CONFIGS.glob("*.py") if "def get_sweep(" in p.read_text()}
    assert sweeps == N_CELLS.keys()


@pytest.mark.parametrize("name", N_CELLS)
def test_every_cell_validates_and_has_a_name_of_its_own(name):
    cells = cells_of(name)
    assert len({cell.name for cell in cells}) == N_CELLS[name]
    load_config(str(CONFIGS / f"{name}.py"), {})  # `train` takes the file as well


def test_head_rank_varies_width_and_rank_and_nothing_else_on_the_same_tokens():
    cells = cells_of("head_rank")
    alike = {
        dataclasses.replace(
            cell.config,
            model=dataclasses.replace(cell.config.model, d_model=64, n_heads=2, head_rank=None),
        )
        for cell in cells
    }
    assert len(alike) == 1 and len({cell.tokens for cell in cells}) == 1
    shapes = {(cell.config.model.d_model, cell.config.model.head_rank) for cell in cells}
    for width in (64, 128, 256):
        ranks = [2**i for i in range(2, 12) if 2**i < width]
        assert {rank for d, rank in shapes if d == width} == {None, *ranks}


def test_rungs_of_the_ladder_have_20_tokens_a_parameter_and_the_flops_that_the_file_says():
    lines = (CONFIGS / "ladder.py").read_text().splitlines()
    comments = [line.partition("#")[2].split() for line in lines if line.startswith("    (")]
    for cell, (n, _, tokens, unit, flops) in zip(cells_of("ladder"), comments, strict=True):
        assert cell.tokens == pytest.approx(20 * cell.parameters.total, rel=0.01)
        assert cell.parameters.total == pytest.approx(float(n) * 1e6, rel=0.05)
        assert cell.tokens == pytest.approx(float(tokens) * {"M": 1e6, "G": 1e9}[unit], rel=0.02)
        assert cell.flops == pytest.approx(float(flops), rel=0.05)


def test_cells_of_saturation_see_the_same_tokens_and_are_probed_at_the_same_ones():
    cells = cells_of("saturation")
    assert len({cell.tokens for cell in cells}) == 1
    assert len({c.config.probe.every * c.config.tokens_per_step for c in cells}) == 1
    assert min(cell.tokens / cell.parameters.total for cell in cells) > 200


@pytest.mark.slow
@pytest.mark.parametrize("name", N_CELLS)
def test_the_smallest_cell_trains_for_20_steps(name, tmp_path):
    from bottleneck.training.loop import train

    text = tmp_path / "text"
    text.mkdir()
    for source in sorted((CONFIGS.parent / "bottleneck").rglob("*.py")):
        (text / f"{source.stem}.txt").write_text(source.read_text())
    cell = min(cells_of(name), key=lambda cell: cell.flops)
    config = cell.config
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(
            config.data,
            corpus="text",
            paths=(str(text),),
            cache_dir=str(tmp_path / "cache"),
            tokenizer_vocab_size=1000,
            validation_fraction=0.1,
        ),
        train=dataclasses.replace(config.train, steps=20, batch_size=4),  # 20 of its own take long
        optimizer=dataclasses.replace(config.optimizer, warmup_steps=2),
        probe=dataclasses.replace(config.probe, tokens=4096, every=20),
        checkpoint=dataclasses.replace(config.checkpoint, every=20),
    )
    train(config, tmp_path / "run")
    run = runs.load(tmp_path / "run")
    assert run.is_complete and run.n_params == cell.parameters.total
    _, (first, last) = run.series("eval", "step", "loss")
    assert last < first - 0.1
