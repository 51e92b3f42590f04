"""Frozen features: hidden states of a layer on disk, and heads of any rank trained on them.

N: tokens; D: hidden width; V: vocabulary; R: rank of the head; C: E[h hᵀ], [D, D].

- `make_features` writes the hidden states of a `RunSource` or a `TransformersModel`.
- `load(path)` opens them; `load(path).part("train").hidden` is [N, D].
- `FrozenStudy(features, plan, folder).run()` trains heads of many ranks on them.
- `load_results`, `rank_laws`, `print_results` and `heads_figure` read the folder of a study.

The best full-rank head solves a convex problem. Here all hidden states are equal and every fourth
target is 1, so the loss is the entropy of 1/4 and 3/4:

>>> import numpy as np
>>> from bottleneck import frozen
>>> hidden, targets = np.ones((100, 1)), np.int32(np.arange(100) % 4 == 0)

>>> training = frozen.Training(chunk=100, moment=np.eye(1), ridge=1e-6)
>>> best = frozen.convex_optimum(training, hidden, targets, np.zeros((2, 1)))
>>> f"{best.objective:.3f} nats"
'0.562 nats'
"""

from bottleneck.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "features": ["FeatureManifest", "Features", "FeatureSet", "load"],
        "extraction": ["Request", "RunSource", "make_features", "write_probe"],
        "transformers_model": ["TransformersModel"],
        "heads": ["Training"],
        "optimum": ["ConvexOptimum", "convex_optimum"],
        "study": ["FrozenPlan", "FrozenStudy"],
        "figures": [
            *("features_figure", "heads_figure", "load_results"),
            *("print_results", "rank_laws", "rank_of_gap"),
        ],
    },
)
