"""Tracing and compiling a train step against its depth, which must cost about nothing.

python benchmarks/compile_time.py
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import frame

ROOT = Path(__file__).parents[1]
TURNS = 3


def processor_seconds(n_layers: int) -> float:
    """Returns those of tracing and compiling a step of Pythia-160M with this many layers."""
    import jax

    from bottleneck.commands.flags import load_config
    from bottleneck.parallel.mesh import make_mesh
    from bottleneck.training.step import make_train_program

    changes = {"model.n_layers": str(n_layers), "train.batch_size": "1"}
    config = load_config(f"{ROOT}/configs/pythia.py:160m", changes)
    mesh = make_mesh(config.compute.mesh, jax.devices()[:1])
    start = time.process_time()
    program = make_train_program(config, mesh)
    with jax.set_mesh(mesh):
        program.compile(1, config.train.sequence_length)
    return time.process_time() - start


def main() -> None:
    """Prints processor seconds for 12 and 36 layers, and their ratio."""
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    processor_seconds(12)  # what only the first program needs
    found: dict[str, list[float]] = {"shallow": [], "deep": []}
    for _ in range(TURNS):
        found["shallow"].append(processor_seconds(12))
        found["deep"].append(processor_seconds(36))
    row = {"case": "Pythia-160M's train step", **frame.compared(found, "deep", "shallow")}
    columns = {
        "case": "processor seconds",
        "theirs": "12 layers",
        "ours": "36 layers",
        "ratio": "36 / 12",
    }
    frame.report("compile_time", [row], columns)


if __name__ == "__main__":
    main()
