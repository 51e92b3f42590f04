"""Our singular values of a head against numpy's SVD of it in float64.

python benchmarks/spectrum.py
"""

from __future__ import annotations

import frame
import jax
import numpy as np

from bottleneck.model.head import HeadFactors
from bottleneck.probes.spectrum import head_spectrum

CASES = ((4096, 128), (50_304, 512))  # V, D


def main() -> None:
    """Prints a row a case: seconds of both, the ratio, and the largest relative difference."""
    rows = []
    for V, D in CASES:
        head = 0.02 * jax.random.normal(jax.random.key(0), (V, D))
        matrix = np.asarray(head, np.float64)
        factors = HeadFactors(head, None)
        found, exact = head_spectrum(factors), np.linalg.svd(matrix, compute_uv=False)
        seconds = frame.interleaved(
            {
                "ours": lambda f=factors: head_spectrum(f),
                "theirs": lambda m=matrix: np.linalg.svd(m, compute_uv=False),
            },
            3,
        )
        rows.append(
            {
                "case": f"V {V:,}, D {D}",
                **frame.compared(seconds, "ours", "theirs"),
                "error": f"{np.max(np.abs(found / exact - 1)):.1e}",
            }
        )
    columns = {
        "case": "head",
        "ours": "ours, s",
        "theirs": "numpy, s",
        "ratio": "ours / numpy",
        "error": "largest difference",
    }
    frame.report("spectrum", rows, columns)


if __name__ == "__main__":
    main()
