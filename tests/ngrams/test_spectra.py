"""Spectra of n-grams: against scipy on dense matrices, closed forms, and their own bounds."""

import re

import numpy as np
import pytest
import scipy.linalg

from bottleneck.errors import UserError
from bottleneck.ngrams import eigenvalues as ngram_eigenvalues
from bottleneck.ngrams.counts import count
from bottleneck.ngrams.eigenvalues import eigenvalues, w_error_of
from bottleneck.ngrams.gram import Gram
from bottleneck.ngrams.halves import compare_halves
from bottleneck.ngrams.rows import Estimate, rows
from bottleneck.ngrams.spectra import NgramSpectrum, spectrum
from bottleneck.ngrams.windows import Windows

PROBABILITY = Estimate()
ESTIMATES = [
    PROBABILITY,
    Estimate(weighting="frequency"),
    Estimate(min_count=2),
    Estimate(smoothing=0.7),
    Estimate("log", smoothing=0.5),
    Estimate("log", "frequency", smoothing=2.0, min_count=3),
    Estimate("pmi"),
    Estimate("pmi", "frequency", smoothing=1.5),
]


def zipf_markov_tokens(n, vocab_size, seed=0):
    """Tokens of Zipfian frequencies of which each often brings on the same next one."""
    rng = np.random.default_rng(seed)
    p = 1 / np.arange(1, vocab_size + 1)
    drawn = rng.choice(vocab_size, n, p=p / p.sum())
    follows = rng.choice(vocab_size, vocab_size, p=p / p.sum())
    is_bound = rng.random(n) < 0.5
    tokens = drawn.copy()
    tokens[1:] = np.where(is_bound[1:], follows[drawn[:-1]], drawn[1:])
    return tokens


def dense_rows(tokens, n, how, vocab_size):
    """W by plain loops, from the definitions."""
    counts = {}
    for i in range(len(tokens) - n + 1):
        *context, token = (int(t) for t in tokens[i : i + n])
        counts.setdefault(tuple(context), np.zeros(vocab_size))[token] += 1
    kept = [row for row in counts.values() if row.sum() >= how.min_count]
    p = np.sum(kept, axis=0) / np.sum(kept)
    matrix = []
    for c in kept:
        total, alpha = c.sum(), how.smoothing
        with np.errstate(divide="ignore", invalid="ignore"):
            smoothed = (c + alpha * p) / (total + alpha)
            if how.space == "probability":
                row = smoothed - alpha * p / (total + alpha)
            elif how.space == "log":
                row = np.log(smoothed) - np.log(alpha * p / (total + alpha))
            else:
                row = np.where(c > 0, np.maximum(np.log(smoothed / p), 0), 0)
        row = np.where(p > 0, row, 0.0)
        matrix.append(row * (np.sqrt(total) if how.weighting == "frequency" else 1))
    return np.array(matrix)


def table_of(tokens, n, folder, vocab_size):
    return count(tokens, Windows(n, vocab_size), folder)


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("how", ESTIMATES, ids=str)
def test_singular_values_and_w_error_are_scipys(n, how):
    tokens = zipf_markov_tokens(900, 40)
    fields = {k: v for k, v in vars(how).items() if k != "seed"}
    found = spectrum(tokens, n, vocab_size=40, **fields)
    expected = scipy.linalg.svdvals(dense_rows(tokens, n, how, 40))
    values = np.zeros(len(expected))
    values[: len(found.singular_values)] = found.singular_values[: len(expected)]
    # Both are LAPACK's SVD in float64, of one row space.
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-12 * expected[0] * 40)
    assert np.max(np.abs(values - expected)) < 1e-8
    tail = np.append(np.cumsum(expected[::-1] ** 2)[::-1], 0.0)
    w_error = np.sqrt(tail / tail[0])[: len(found.w_error)]
    np.testing.assert_allclose(found.w_error[: len(w_error)], w_error, rtol=0, atol=1e-7)
    assert found.facts["norm"] == pytest.approx(np.sqrt(tail[0]), rel=1e-12)


def test_one_hot_rows_have_the_null_as_their_spectrum():
    """Every window of distinct tokens is a context of its own, with σ² = counts."""
    rng = np.random.default_rng(0)
    contexts = np.arange(100, 100 + 400)
    next_tokens = rng.integers(0, 12, 400)
    tokens = np.stack([contexts, next_tokens], axis=1).ravel()
    found = spectrum(tokens, 2, vocab_size=500, end_of_text=None)
    # The windows (next token, context) branch; those alone that begin a document do not.
    only = spectrum(tokens, 3, vocab_size=500)
    np.testing.assert_allclose(only.w_error, only.null, atol=1e-7)
    counts = np.bincount(tokens[2:])
    expected = np.sort(counts[counts > 0])[::-1]
    np.testing.assert_allclose(only.singular_values**2, expected, rtol=1e-12)
    assert not np.allclose(found.w_error, found.null, atol=1e-2)


@pytest.mark.parametrize("how", ESTIMATES, ids=str)
def test_the_null_is_the_w_error_of_the_same_entries_in_rows_of_their_own(how):
    tokens = zipf_markov_tokens(900, 40)
    found = spectrum(
        tokens, 3, vocab_size=40, **{k: v for k, v in vars(how).items() if k != "seed"}
    )
    w = dense_rows(tokens, 3, how, 40)
    place, token = np.nonzero(w)
    one_hot = np.zeros((len(place), 40))
    one_hot[np.arange(len(place)), token] = w[place, token]
    values = scipy.linalg.svdvals(one_hot)[: len(found.null) - 1] ** 2
    expected = np.sqrt(np.append(np.cumsum(values[::-1])[::-1], 0.0) / values.sum())
    np.testing.assert_allclose(found.null, expected, atol=1e-7)
    assert np.all(found.null >= found.w_error - 1e-7)  # Schur and Horn
    assert np.max(found.null - found.w_error) > 1e-3


@pytest.mark.parametrize("how", [ESTIMATES[i] for i in (0, 1, 4, 6)], ids=str)
def test_w_error_lies_between_its_bounds_where_it_is_not_exact(tmp_path, monkeypatch, how):
    tokens = zipf_markov_tokens(5000, 90)
    gram = Gram.of(rows(table_of(tokens, 3, tmp_path, 90), how, folder=tmp_path))
    exact = eigenvalues(gram, 25, exact=True)
    monkeypatch.setattr(ngram_eigenvalues, "_SVD_CELLS", 0)
    monkeypatch.setattr(ngram_eigenvalues, "_EXACT_SIZE", 0)
    bounded = eigenvalues(gram, 25)
    assert bounded.method != exact.method
    truth = exact.w_error()[0]
    computed, least = bounded.w_error()
    # Of sums near the trace the square root of a rounding error is left: √(1e-15).
    assert np.all(computed >= truth - 1e-7) and np.all(least <= truth + 1e-7)
    assert np.max((computed - least)[:26]) <= ngram_eigenvalues.TOLERANCE


def test_power_steps_close_the_bounds_that_the_axes_leave_open(tmp_path, monkeypatch):
    tokens = zipf_markov_tokens(20_000, 200)
    how = Estimate("log", smoothing=1.0)
    gram = Gram.of(rows(table_of(tokens, 2, tmp_path, 200), how, folder=tmp_path))
    monkeypatch.setattr(ngram_eigenvalues, "_SVD_CELLS", 0)
    monkeypatch.setattr(ngram_eigenvalues, "_EXACT_SIZE", 0)
    open_bounds = eigenvalues(gram, 50, tolerance=1.0).w_error()
    closed = eigenvalues(gram, 50).w_error()
    assert np.max((open_bounds[0] - open_bounds[1])[:51]) > 0.05
    assert np.max((closed[0] - closed[1])[:51]) <= ngram_eigenvalues.TOLERANCE


def test_the_gram_matrix_is_the_same_in_one_block_and_in_many(tmp_path, monkeypatch):
    from bottleneck.ngrams import gram as ngram_gram

    tokens = zipf_markov_tokens(4000, 60)
    made = rows(table_of(tokens, 3, tmp_path, 60), PROBABILITY, folder=tmp_path)
    gram = Gram.of(made)
    w = dense_rows(tokens, 3, PROBABILITY, 60)
    expected = (w.T @ w)[np.ix_(gram.columns, gram.columns)]
    for terms in (1, 1000, 2**23):
        monkeypatch.setattr(ngram_gram, "_BLOCK_TERMS", terms)
        np.testing.assert_allclose(gram.dense(gram.size), expected, atol=1e-10)
        own, norms, limits = Gram.of(made).outside(20)
        outer = expected[20:, 20:]
        np.testing.assert_allclose(own, np.diag(outer), atol=1e-10)
        np.testing.assert_allclose(norms, np.linalg.norm(expected[:20, 20:], axis=0), atol=1e-10)
        np.testing.assert_allclose(limits, np.abs(outer).sum(axis=1), atol=1e-10)
    vectors = np.random.default_rng(0).standard_normal((gram.size, 130))
    np.testing.assert_allclose(gram.times(vectors), expected @ vectors, atol=1e-9)


def test_exact_eigenvalues_that_do_not_fit_are_refused(tmp_path, monkeypatch):
    tokens = zipf_markov_tokens(4000, 60)
    gram = Gram.of(rows(table_of(tokens, 3, tmp_path, 60), PROBABILITY, folder=tmp_path))
    monkeypatch.setattr(ngram_eigenvalues, "_SVD_CELLS", 0)
    with pytest.raises(UserError, match=r"need 0\.0 GB of memory for a dense matrix"):
        eigenvalues(gram, 10, memory=1e3, exact=True)


def test_rows_that_do_not_fit_in_memory_are_the_same_on_disk(tmp_path):
    table = table_of(zipf_markov_tokens(4000, 60), 3, tmp_path, 60)
    inside, outside = (rows(table, PROBABILITY, folder=tmp_path, memory=m) for m in (1e9, 0))
    assert (tmp_path / "entries.bin").stat().st_size == 8 * outside.branching.nnz
    np.testing.assert_array_equal(inside.branching.toarray(), outside.branching.toarray())


def test_drawn_contexts_are_part_of_a_larger_draw_and_of_the_whole():
    tokens = zipf_markov_tokens(4000, 60)
    sizes = [100, 400, 800]
    found = [spectrum(tokens, 3, contexts=c) for c in sizes]
    assert [one.facts["contexts"] for one in found] == sizes
    # Σσ² grows with every row that is added to the same ones.
    norms = [one.facts["norm"] for one in found]
    assert norms == sorted(norms) and norms[-1] < spectrum(tokens, 3).facts["norm"]
    with pytest.raises(UserError, match=r"contexts cannot be drawn from the 8\d\d that"):
        spectrum(tokens, 3, contexts=10**6)


def low_rank_language(rank, n_tokens, n, seed=0):
    """Tokens whose next-token probabilities, a row for each token, have a known rank."""
    rng = np.random.default_rng(seed)
    transitions = rng.dirichlet(np.full(rank, 0.5), n_tokens)
    transitions = transitions @ rng.dirichlet(np.full(n_tokens, 0.2), rank)
    cumulative = transitions.cumsum(axis=1)
    tokens, lots = [0], rng.random(n)
    for lot in lots:
        tokens.append(min(int(np.searchsorted(cumulative[tokens[-1]], lot)), n_tokens - 1))
    return np.array(tokens), transitions


@pytest.mark.parametrize("weighting", ["equal", "frequency"])
def test_split_halves_find_the_rank_that_plain_counts_blur(weighting):
    """Rank 3: W-error of the true rows is 0 from d = 3 on; noise lifts the plain estimate."""
    tokens, transitions = low_rank_language(3, 24, 40_000)
    found = spectrum(tokens, 2, vocab_size=24, weighting=weighting, split_half=True)
    visits = np.bincount(tokens[:-1], minlength=24)
    weights = visits if weighting == "frequency" else (visits > 0)
    values = np.linalg.svd(transitions * np.sqrt(weights)[:, None], compute_uv=False) ** 2
    truth = np.sqrt(np.maximum(1 - np.append(0, np.cumsum(values)) / values.sum(), 0))
    plain = np.abs(found.w_error[1:8] - truth[1:8])
    split = np.abs(found.halves.w_error[1:8] - truth[1:8])
    assert found.w_error[3] > 0.04
    assert split.mean() < 0.6 * plain.mean()


def test_unbiased_gram_matrices_are_right_on_average(tmp_path):
    """E WᵀW over redrawn texts is PᵀP, where that of the plain rows has a greater diagonal."""
    rng = np.random.default_rng(0)
    true = rng.dirichlet(np.ones(6), 3)
    how = Estimate(min_count=2)
    total = np.zeros((6, 6))
    n_texts = 100
    for text in range(n_texts):
        pieces = [
            np.stack([np.full(4, 6 + c), rng.choice(6, 4, p=true[c]), np.full(4, 9)], axis=1)
            for c in range(3)
        ]
        # 9 ends documents, so that the only context that is followed by others is 6 + c.
        tokens = np.concatenate(pieces).ravel()
        folder = tmp_path / str(text)
        table = count(tokens, Windows(2, 10, end_of_text=9), folder)
        made = rows(table, how, folder=folder, unbiased=True)
        gram = np.diag(made.diagonal) + (made.branching.T @ made.branching).toarray()
        total += gram[:6, :6]
    # Entries vary by some 0.3 from text to text: 0.03 after 100, four of which are allowed.
    np.testing.assert_allclose(total / n_texts, true.T @ true, atol=0.12)


def test_split_halves_need_probabilities(tmp_path):
    table = table_of(zipf_markov_tokens(400, 20), 2, tmp_path, 20)
    for how in (Estimate("pmi"), Estimate(smoothing=1.0)):
        with pytest.raises(UserError, match="in the probability space, without smoothing"):
            compare_halves(table, how, tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"space": "log"}, "the log space needs a smoothing above 0"),
        ({"smoothing": -1.0}, "smoothing=-1.0 is not allowed; it must be at least 0"),
        ({"smoothing": float("nan")}, "smoothing=nan is not allowed"),
        ({"min_count": 0}, "min_count=0 is not allowed; it must be at least 1"),
        ({"contexts": 0}, "a draw of 0 contexts is not allowed; take at least 1"),
        ({"min_count": 10**6}, "no 2-token context occurs 1000000 times or more"),
    ],
)
def test_a_wrong_estimate_is_one_line(fields, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        spectrum(zipf_markov_tokens(100, 20), 3, **fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("how", [{}, {"weighting": "frequency"}, {"space": "log", "smoothing": 1}])
def test_a_single_context_has_rank_one(how):
    found = spectrum(np.array([1, 2, 3]), 3, **how)
    assert found.facts["contexts"] == 1 and len(found.singular_values) == 1
    np.testing.assert_array_equal(found.w_error, [1, 0])
    np.testing.assert_array_equal(found.null, [1, 0])


@pytest.mark.parametrize("tokens", [[], [3], [3, 1, 2, 0]])
def test_a_text_shorter_than_one_window_is_one_line(tokens):
    with pytest.raises(UserError, match="the corpus has"):
        spectrum(np.array(tokens, int), 5)


def test_rows_without_any_norm_are_one_line():
    """All tokens alike: the PMI of the only pair is 0."""
    with pytest.raises(UserError, match="every entry of W is 0"):
        spectrum(np.zeros(50, int), 2, space="pmi")


def test_a_spectrum_is_read_back_as_it_was_saved(tmp_path):
    found = spectrum(zipf_markov_tokens(3000, 30), 2, split_half=True)
    found.save(tmp_path / "one.npz")
    again = NgramSpectrum.load(tmp_path / "one.npz")
    assert again.facts == found.facts and again.label == found.label
    for name in ("singular_values", "w_error", "w_error_least", "null"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))
    np.testing.assert_array_equal(again.halves.w_error, found.halves.w_error)
    assert again.halves.n_contexts == found.halves.n_contexts
    assert [path.name for path in tmp_path.iterdir()] == ["one.npz"]


def test_dimensions_is_where_w_error_falls_to_a_level():
    found = spectrum(zipf_markov_tokens(3000, 60), 3)
    d = found.dimensions(0.5)
    assert found.w_error[d] <= 0.5 < found.w_error[d - 1]


def test_w_error_of_a_diagonal_matrix():
    np.testing.assert_allclose(w_error_of(np.array([1.0, 0, 4, 11])), [1, np.sqrt(5 / 16), 0.25, 0])


@pytest.mark.parametrize("decades", [0, 4, 7, 9, 15])
def test_orthonormal_columns_keep_the_span_however_nearly_dependent_they_are(decades):
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((size, 30)))[0] for size in (90, 30))
    block = np.asfortranarray((left * np.logspace(0, -decades, 30)) @ right)
    found = ngram_eigenvalues._orthonormal(block.copy(order="F"))
    np.testing.assert_allclose(found.T @ found, np.eye(30), atol=1e-13)
    np.testing.assert_allclose(found @ (found.T @ block), block, atol=1e-13)
