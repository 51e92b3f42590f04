"""What is made of numbers alone comes out the same in every process, whatever its threads."""

import os
import subprocess
import sys

import numpy as np
import pytest

# Some 600 columns, which BLAS gives to several threads.
PROGRAM = """
import sys

import numpy as np

from bottleneck import laws, ngrams

source = np.random.default_rng(0)
tokens = (600 * source.random(100_000) ** 3).astype(np.int32)
tokens[1::2] = (tokens[::2] * 7 + tokens[1::2] // 50) % 600
spectrum = ngrams.spectrum(tokens, n=3)

true = laws.ScalingLaw(E=1.8169, A=482.01, B=2085.43, alpha=0.3478, beta=0.3659)
n_params = np.exp(source.uniform(np.log(5e7), np.log(1.6e10), 32))
n_tokens = np.exp(source.uniform(np.log(6e18), np.log(3e21), 32)) / 6 / n_params
loss = true.predict(n_params, n_tokens) * np.exp(0.005 * source.standard_normal(32))
law = laws.fit(laws.Points(n_params, n_tokens, loss))
np.savez(
    sys.argv[1],
    singular_values=spectrum.singular_values,
    null=spectrum.null,
    law=[law.E, law.A, law.B, law.alpha, law.beta],
)
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """{name: arrays} of processes with one thread, with two, and with two once more."""
    folder = tmp_path_factory.mktemp("threads")
    found = {}
    for name, threads, hash_seed in ("one", "1", "0"), ("two", "2", "0"), ("again", "2", "7"):
        limits = {"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        subprocess.run(
            [sys.executable, "-c", PROGRAM, str(folder / f"{name}.npz")],
            env=os.environ | limits | {"PYTHONHASHSEED": hash_seed},
            check=True,
        )
        with np.load(folder / f"{name}.npz") as arrays:
            found[name] = dict(arrays)
    return found


def test_ngrams_and_laws_are_the_same_in_every_process_to_the_last_bit(results):
    for name, array in results["two"].items():
        np.testing.assert_array_equal(results["again"][name], array, err_msg=name)


def test_threads_of_blas_change_the_last_bits_of_singular_values_and_nothing_else(results):
    one, two = results["one"], results["two"]
    for name in "null", "law":
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)
    # Eigenvalues in float64 of the Gram matrix, relative to its largest.
    largest = two["singular_values"].max()
    np.testing.assert_allclose(
        one["singular_values"] ** 2, two["singular_values"] ** 2, rtol=0, atol=1e-13 * largest**2
    )
