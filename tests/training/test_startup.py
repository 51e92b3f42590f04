"""What is compiled before the first step: Pythia-160M at its own sequence length, on one CPU."""

from pathlib import Path

import jax

from bottleneck.commands.flags import load_config
from bottleneck.parallel.mesh import make_mesh
from bottleneck.training.step import make_train_program

PYTHIA = Path(__file__).parents[2] / "configs/pythia.py"


def trace(n_layers):
    """The train step's program, with no array behind it; a batch of one sequence."""
    changes = {"model.n_layers": str(n_layers), "train.batch_size": "1"}
    config = load_config(f"{PYTHIA}:160m", changes)
    mesh = make_mesh(config.compute.mesh, jax.devices()[:1])
    program = make_train_program(config, mesh)
    with jax.set_mesh(mesh):
        return program.lower(1, config.train.sequence_length)


def test_a_program_does_not_grow_with_depth():
    shallow, deep = (trace(n_layers).as_text().count("\n") for n_layers in (12, 36))
    assert deep == shallow
