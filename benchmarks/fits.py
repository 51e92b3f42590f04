"""The law of 245 points from its 4,500 starts, against scipy's L-BFGS from some of them; resamples.

python benchmarks/fits.py
"""

from __future__ import annotations

import frame
import numpy as np
from scipy.optimize import minimize
from scipy.special import huber, logsumexp

from bottleneck.laws.comparison import bootstrap
from bottleneck.laws.forms import CHINCHILLA
from bottleneck.laws.points import Points
from bottleneck.laws.scaling_law import DELTA, fit

SOME = 20  # starts of scipy's; it would take minutes for all


def points(n: int = 245) -> Points:
    """Returns points of the published law of Hoffmann et al. 2022, with 1 % of noise."""
    rng = np.random.default_rng(0)
    sizes, tokens = 10 ** rng.uniform(7, 10, n), 10 ** rng.uniform(9, 11.5, n)
    loss = 1.69 + 406.4 / sizes**0.34 + 410.7 / tokens**0.28
    return Points(sizes, tokens, loss * np.exp(0.01 * rng.normal(size=n)))


def main() -> None:
    """Prints seconds of all starts and of scipy's few, a start's share, and of 1,000 resamples."""
    data = points()
    design = CHINCHILLA.design(data.log_quantities())
    target = np.log(data.loss)
    starts = CHINCHILLA.starts(CHINCHILLA.constants)

    def objective(theta: np.ndarray) -> float:
        return float(huber(DELTA, logsumexp(design @ theta, axis=1) - target).sum())

    def theirs() -> None:
        for start in starts[:: len(starts) // SOME][:SOME]:
            minimize(objective, start, method="L-BFGS-B")

    law = fit(data)
    seconds = frame.interleaved(
        {
            "ours": lambda: fit(data),
            "theirs": theirs,
            "resamples": lambda: bootstrap(law, data, 1000),
        },
        3,
    )
    of_a_start = [ratio * SOME / len(starts) for ratio in frame.ratios(seconds, "ours", "theirs")]
    rows = [
        {
            "ours": frame.spread(seconds["ours"]),
            "theirs": frame.spread(seconds["theirs"]),
            "ratio": frame.spread(of_a_start),
            "resamples": frame.spread(frame.ratios(seconds, "resamples", "ours")),
        }
    ]
    columns = {
        "ours": f"{len(starts):,} starts, s",
        "theirs": f"{SOME} of scipy's, s",
        "ratio": "a start of ours / of scipy's",
        "resamples": "1,000 resamples / the fit",
    }
    frame.report("fits", rows, columns)


if __name__ == "__main__":
    main()
