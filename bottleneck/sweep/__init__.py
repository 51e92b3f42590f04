"""Many runs from one config file: the cells of a sweep, how to train them, and their tables.

A config file describes a sweep in `get_sweep()`, as a list of overrides. `product` and `zipped`
make such lists, and `+` joins them:

>>> from bottleneck import sweep
>>> sweep.product({"model.head_rank": [8, None]}, sweep.zipped({"seed": [1], "train.steps": [9]}))
[{'model.head_rank': 8, 'seed': 1, 'train.steps': 9},
 {'model.head_rank': None, 'seed': 1, 'train.steps': 9}]

With a config, `expand` turns overrides into validated cells. Train them with `run_all`; ask for the
state of one with `state_of`. For a terminal there are `cost_table`, `status_table` and `watch`.
"""

from bottleneck.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "cells": ["Cell", "expand", "product", "zipped"],
        "runner": ["Places", "Stopped", "run_all", "state_of"],
        "table": ["cost_table", "status_table", "watch"],
    },
)
