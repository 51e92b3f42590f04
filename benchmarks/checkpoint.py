"""What a save costs: how long it blocks the step, how fast it is on the disk, and what share of the
demo that is at its own cadence.

python benchmarks/checkpoint.py
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import demo_run
import frame
import jax

from bottleneck.commands.flags import load_config
from bottleneck.config import CheckpointConfig
from bottleneck.parallel.mesh import make_mesh
from bottleneck.runs.checkpoints import Checkpointer
from bottleneck.training.step import make_train_program

MODELS = ("configs/nano.py", "configs/pythia.py:14m")
SAVES = 5


def main() -> None:
    """Prints a row a model: its bytes, blocked seconds, bytes a second until all is on disk."""
    rows = []
    record = demo_run.time_record()
    for model in MODELS:
        config = load_config(str(demo_run.ROOT / model), {})
        mesh = make_mesh(config.compute.mesh)
        blocked, rates = [], []
        with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as folder:
            state = jax.block_until_ready(make_train_program(config, mesh).init())
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
            with Checkpointer(Path(folder), CheckpointConfig()) as saved:
                for step in range(SAVES):
                    start = time.perf_counter()
                    saved.save(step, *state)
                    blocked.append(time.perf_counter() - start)
                    saved.wait()
                    rates.append(size / (time.perf_counter() - start) / 1e6)
        is_demo = model == MODELS[0]
        share = f"{record['checkpoint_seconds'] / record['seconds']:.2%}" if is_demo else "–"
        rows.append(
            {
                "case": model,
                "size": f"{size / 1e6:.0f}",
                "blocked": frame.spread(blocked),
                "rate": frame.spread(rates),
                "share": share,
            }
        )
    columns = {
        "case": "model",
        "size": "MB",
        "blocked": "blocks the step, s",
        "rate": "MB/s until on disk",
        "share": "of the run",
    }
    frame.report("checkpoint", rows, columns)


if __name__ == "__main__":
    main()
