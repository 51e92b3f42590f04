"""The report of runs: a summary table, figures, and one HTML page. Drawing imports no jax.

Losses and gaps are in nats per token. R: rank of the head; D: hidden width; σ: singular values.
A gap is the loss of a truncated head minus that of the whole head. Here a run with made-up losses:

>>> import pathlib, polars
>>> from bottleneck import config, report, runs
>>> lines = {"step": [0, 100], "split": "eval", "tokens": [0, 4096], "loss": [9.0, 3.5]}
>>> facts = {"metrics": polars.DataFrame(lines), "n_params": 9, "n_params_non_embedding": 7}
>>> run = runs.Run(pathlib.Path("demo"), "demo", config.parse(config.base()), **facts)
>>> report.summary_table([run]).select("run", "tokens", "loss").rows()
[('demo', 4096, 3.5)]

`figures` has a function per figure: `figures.spectrum([run])` returns a matplotlib Figure.
`write_report(runs, folder)` writes the page.
"""

from bottleneck.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__, {"figures": [], "page": ["write_report"], "summary": ["summary_table"]}
)
