"""The spectrum of an n-gram matrix, as sparse as it is, against numpy's SVD of all its entries.

python benchmarks/ngrams.py
"""

from __future__ import annotations

import frame
import numpy as np

from bottleneck import ngrams

V = 1024


def main() -> None:
    """Prints a row a case: bigrams against numpy, and 5-grams, which numpy could not hold."""
    rng = np.random.default_rng(0)
    tokens = np.minimum(rng.zipf(1.3, 1_000_000) - 1, V - 1)

    def dense() -> np.ndarray:
        counts = np.zeros((V, V))
        np.add.at(counts, (tokens[:-1], tokens[1:]), 1)
        rows = counts[counts.sum(axis=1) > 0]
        return np.linalg.svd(rows / rows.sum(axis=1, keepdims=True), compute_uv=False)

    seconds = frame.interleaved(
        {
            "ours": lambda: ngrams.spectrum(tokens, n=2, vocab_size=V),
            "theirs": dense,
            "5-grams": lambda: ngrams.spectrum(tokens, n=5, vocab_size=V),
        },
        3,
    )
    rows = [
        {"case": f"bigrams, V {V:,}", **frame.compared(seconds, "ours", "theirs")},
        {"case": f"5-grams, V {V:,}", **frame.compared(seconds, "5-grams", "ours")},
    ]
    rows[1]["theirs"] += ", our bigrams"
    columns = {"case": "1,000,000 tokens", "ours": "s", "theirs": "numpy, s", "ratio": "ratio"}
    frame.report("ngrams", rows, columns)


if __name__ == "__main__":
    main()
