"""The walk through Godey, de la Clergerie and Sagot 2024: its numbers, recomputed and drawn.

`digitised` returns the readings off the figures; `curve` and `w_errors` look them up. `figure_1a`,
`final_points` and `best_points` give them to the fits of `laws`:

>>> from bottleneck import paper
>>> steps, loss = paper.curve("loss", d_model=512)
>>> f"step {steps[-1]:,.0f}: {loss[-1]:.2f}, minimum {loss.min():.2f}"
'step 140,000: 3.63, minimum 3.58'

The page comes from `write_paper`; published evaluations, from `read_evals`, and runs are optional.
With `PaperOverlay` the report of a run shows the paper's curves as well.
"""

from bottleneck.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "curves": ["curve", "digitised", "w_errors"],
        "values": ["best_points", "figure_1a", "final_points", "n_params"],
        "evals": ["loss_series", "read_evals"],
        "page": ["write_paper"],
        "overlay": ["PaperOverlay"],
    },
)
