"""The run folder: training writes it, everything else reads it. Reading imports no jax.

A folder has config.json, metrics.jsonl with one line per step and split, and a `Probe` in each
probes/STEP.npz. Orbax wrote its checkpoints/STEP. Splits are "train", "eval", "probe" and "time".
Losses are in nats per token. R: rank of the head; D: hidden width.

`load(folder)` returns a `Run` such as this made-up one:

>>> import pathlib, polars
>>> from bottleneck import config, runs
>>> lines = polars.DataFrame({"step": [0, 100], "split": "eval", "loss": [9.0, 3.5]})
>>> facts = {"metrics": lines, "n_params": 9, "n_params_non_embedding": 7}
>>> run = runs.Run(pathlib.Path("demo"), "demo", config.parse(config.base()), **facts)
>>> run.series("eval", "step", "loss")
[array([  0., 100.]), array([9. , 3.5])]

`run.params(step)` returns saved parameters, `run.probe(step)` a `Probe`.
- `load_all` returns all runs in some folders.
- `table` puts the measurements of a sweep into one polars table.
"""

from bottleneck.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__, {"reading": ["Run", "load", "load_all", "table"], "probe": ["Probe", "RankGaps"]}
)
