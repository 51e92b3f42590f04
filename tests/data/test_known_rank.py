"""The language of known rank: what its rank is, what its floor is, and that its tokens are it."""

import itertools

import numpy as np
import pytest
from scipy import stats

from bottleneck.config import DataConfig, base, parse
from bottleneck.data import known_rank
from bottleneck.data.batches import Batches, validation_windows
from bottleneck.data.corpus import open_corpus
from bottleneck.data.known_rank import make_language
from bottleneck.data.tokens import prepare
from bottleneck.errors import UserError


def language_data(**fields) -> DataConfig:
    return DataConfig(
        **{"corpus": "known_rank", "language_tokens": 20, "language_rank": 3, **fields}
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    return prepare(
        language_data(language_documents=6000, validation_fraction=0.25, cache_dir=str(folder))
    )


@pytest.mark.parametrize(("n_tokens", "rank"), [(128, 6), (128, 12), (64, 63), (2, 1)])
def test_logits_have_the_rank_and_every_dimension_counts_as_much(n_tokens, rank):
    logits = np.log(make_language(n_tokens, rank, seed=0).transitions)
    values = np.linalg.svd(logits - logits.mean(axis=1, keepdims=True), compute_uv=False)
    np.testing.assert_allclose(values[:rank], values[0], rtol=1e-12)
    assert values[0] ** 2 * rank == pytest.approx((known_rank.LOGIT_STD * n_tokens) ** 2)
    assert np.all(values[rank:] < 1e-12 * values[0] * n_tokens)


def test_stationary_distribution_is_where_the_chain_ends_up():
    language = make_language(30, 4, seed=1)
    np.testing.assert_allclose(language.transitions.sum(axis=1), 1, rtol=1e-14)
    far_away = np.linalg.matrix_power(language.transitions, 1000)
    np.testing.assert_allclose(far_away, np.tile(language.stationary, (30, 1)), rtol=1e-11)


def test_entropy_rate_is_that_of_long_blocks_less_that_of_shorter_ones():
    language = make_language(5, 2, seed=0)

    def block_entropy(length: int) -> float:
        blocks = np.array(list(itertools.product(range(5), repeat=length)))
        steps = language.transitions[blocks[:, :-1], blocks[:, 1:]]
        return stats.entropy(language.stationary[blocks[:, 0]] * steps.prod(axis=1))

    assert language.entropy_rate == pytest.approx(block_entropy(5) - block_entropy(4), abs=1e-12)


def test_no_logits_have_a_lower_cross_entropy_than_the_entropy_rate():
    language = make_language(16, 4, seed=0)
    exact = np.log(language.transitions)
    rng = np.random.default_rng(0)
    row_shift = rng.standard_normal((16, 1))
    assert language.cross_entropy(exact + 100 * row_shift) == pytest.approx(language.entropy_rate)
    for size in (1e-2, 1e-1, 1.0):
        other = exact + size * rng.standard_normal(exact.shape)
        divergence = stats.entropy(language.transitions, np.exp(other - other.max()), axis=1)
        excess = language.cross_entropy(other) - language.entropy_rate
        assert excess == pytest.approx(language.stationary @ divergence, rel=1e-9)
        assert excess > 0


def test_a_language_depends_on_its_seed():
    again, other = make_language(32, 4, seed=0), make_language(32, 4, seed=1)
    np.testing.assert_array_equal(make_language(32, 4, seed=0).transitions, again.transitions)
    assert np.abs(again.transitions - other.transitions).max() > 0.01


def test_documents_are_the_same_each_time_and_a_longer_corpus_continues_a_shorter_one():
    language = make_language(20, 3, seed=0)
    block = known_rank._BLOCK
    short = list(known_rank.documents(language, block - 10, seed=5))
    long = list(known_rank.documents(language, block + 10, seed=5))
    assert short == list(known_rank.documents(language, block - 10, seed=5))
    assert len({document.text for document in long}) == len(long) == block + 10
    assert [d.key for d in long] == [str(i) for i in range(block + 10)]
    # The first documents of both blocks are not drawn from the same numbers.
    symbols = [document.text.split(" ")[1] for document in long]
    assert symbols[:10] != symbols[block:]
    assert long != list(known_rank.documents(language, block + 10, seed=6))


def test_positions_grow_to_the_size_of_the_corpus_which_is_about_the_true_one():
    corpus = open_corpus(language_data(language_documents=5000))
    documents = list(corpus.documents())
    positions = [document.position for document in documents]
    assert positions == sorted(positions) and positions[-1] == corpus.fingerprint.bytes
    true_size = sum(len(document.text.encode()) for document in documents)
    assert 0.3 < true_size / corpus.fingerprint.bytes < 3


@pytest.mark.parametrize("split", ["train", "validation"])
def test_both_splits_are_the_chain(cache, split):
    """Pairs of tokens, end of text among them, as often as π P says, by a χ² test."""
    language = make_language(20, 3, seed=0)
    tokens = cache.tokens(split)[:].astype(int)
    counts = np.zeros((20, 20))
    # The first token follows the end of text of an imagined document before it.
    np.add.at(counts, (np.append(0, tokens[:-1]), tokens), 1)
    assert tokens[-1] == cache.end_of_text == 0
    assert counts[0, 0] > 0
    expected = counts.sum(axis=1, keepdims=True) * language.transitions
    often = expected > 5  # where χ² is a good approximation
    statistic = np.sum((counts - expected)[often] ** 2 / expected[often])
    assert 0.001 < stats.chi2.sf(statistic, often.sum() - 20) < 0.999
    share = counts.sum(axis=1) / counts.sum()
    np.testing.assert_allclose(share, language.stationary, rtol=0.1)


def test_tokens_are_the_letters_of_the_documents(cache):
    tokenizer, vocabulary = cache.tokenizer(), cache.vocab_size
    assert vocabulary == 20
    documents = list(known_rank.documents(make_language(20, 3, seed=0), 6000, seed=0))
    letters = {letter: i for i, letter in enumerate(chr(0x4E00 + i) for i in range(20))}
    expected = [[letters[c] for c in d.text.split(" ")[1]] for d in documents]
    assert [tokenizer.encode(d.text).ids for d in documents[:500]] == expected[:500]
    texts = [tokenizer.decode(ids) for ids in expected[:500]]
    assert texts == [d.text.split(" ")[1] for d in documents[:500]]
    assert cache.n_tokens("train") + cache.n_tokens("validation") == sum(map(len, expected)) + 6000
    assert [s.documents for s in cache.manifest.splits.values()] == [
        pytest.approx(4500, abs=150),
        pytest.approx(1500, abs=150),
    ]
    assert cache.manifest.empty_documents == 0


def test_held_out_loss_of_the_true_probabilities_is_the_floor(cache):
    language = make_language(20, 3, seed=0)
    batch = validation_windows(cache, 2**14, 32)
    surprise = -np.log(language.transitions)[batch["inputs"], batch["targets"]]
    error = surprise.std() / surprise.size**0.5
    assert surprise.mean() == pytest.approx(language.entropy_rate, abs=3 * error)
    assert error < 0.02
    assert len(np.unique(batch["documents"])) > 100


def test_batches_are_made_of_it(cache):
    batch = Batches(cache, batch_size=4, sequence_length=16, seed=0).batch(0)
    assert batch["inputs"].shape == (4, 16) and batch["inputs"].max() < 20


def test_another_language_has_another_cache(tmp_path):
    few = {"language_documents": 200, "validation_fraction": 0.2, "cache_dir": str(tmp_path)}
    paths = {prepare(language_data(**few, language_rank=rank)).path for rank in (2, 3, 3)}
    assert len(paths) == 2


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"language_rank": 20}, "data.language_rank=20 .* below data.language_tokens=20"),
        ({"tokenizer": "tokenizer.json"}, "data.tokenizer='tokenizer.json' .* has its own"),
    ],
)
def test_a_language_that_cannot_be_is_refused(fields, said):
    with pytest.raises(UserError, match=said):
        language_data(**fields)


def test_the_model_must_have_a_row_for_every_token():
    fields = base()
    fields.data.update(corpus="known_rank", language_tokens=100)
    fields.model.vocab_size = 100
    assert parse(fields).data.vocabulary == ("data.language_tokens", 100)
    fields.model.vocab_size = 99
    with pytest.raises(UserError, match=r"at least data\.language_tokens=100"):
        parse(fields)


def test_the_seed_decides_the_language_and_its_documents():
    drawn = []
    for seed, of_language in itertools.product((0, 1), (0, 1)):
        found = known_rank.documents(make_language(20, 3, of_language), 50, seed)
        drawn.append([document.text for document in found])
    assert len(set(map(tuple, drawn))) == 4
    first, other = (
        open_corpus(language_data(language_documents=50, language_seed=seed)) for seed in (0, 1)
    )
    assert [document.text for document in first.documents()] == drawn[0]
    assert [document.text for document in other.documents()] == drawn[3]
    assert first.description != other.description


def test_no_block_of_documents_repeats_another(monkeypatch):
    monkeypatch.setattr(known_rank, "_BLOCK", 16)
    drawn = known_rank.documents(make_language(20, 3, 0), 64, 0)
    symbols = [document.text.partition(" ")[2] for document in drawn]
    blocks = {tuple(symbols[start : start + 16]) for start in range(0, 64, 16)}
    assert len(blocks) == 4
