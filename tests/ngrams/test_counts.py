"""Counts of n-grams: against a dictionary, in one run and in many, and after a kill."""

import collections
import json
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bottleneck.errors import UserError
from bottleneck.ngrams import counts as ngram_counts
from bottleneck.ngrams.counts import Table, count, plan
from bottleneck.ngrams.windows import Windows, largest_id


def zipf_tokens(n, vocab_size, seed=0, exponent=1.3):
    rng = np.random.default_rng(seed)
    return np.minimum(rng.zipf(exponent, n), vocab_size) - 1


def dictionary(tokens, n, end_of_text=None):
    """Every context's counts, sorted, by plain Python."""
    found = collections.defaultdict(collections.Counter)
    tokens = [int(token) for token in tokens]
    for i in range(len(tokens) - n + 1):
        *context, token = tokens[i : i + n]
        if end_of_text not in context:
            found[tuple(context)][token] += 1
    return sorted(sorted(counts.items()) for counts in found.values())


def contents(table: Table):
    ends = [*table.starts[1:], len(table.tokens)]
    pairs = list(zip(table.tokens.tolist(), table.counts.tolist(), strict=True))
    return sorted(sorted(pairs[a:b]) for a, b in zip(table.starts, ends, strict=True))


@given(
    tokens=st.lists(st.integers(0, 5), min_size=8, max_size=200),
    n=st.integers(2, 7),
    vocab_size=st.sampled_from([6, 70_000, 2**18]),
    end_of_text=st.sampled_from([None, 0, 3]),
)
def test_counts_are_those_of_a_dictionary(tmp_path_factory, tokens, n, vocab_size, end_of_text):
    expected = dictionary(tokens, n, end_of_text)
    windows = Windows(n, vocab_size, end_of_text)
    folder = tmp_path_factory.mktemp("counts")
    if not expected:
        with pytest.raises(UserError, match=f"no document of the corpus has {n} tokens"):
            count(np.array(tokens), windows, folder)
        return
    table = count(np.array(tokens), windows, folder)
    assert contents(table) == expected
    assert table.n_windows == sum(c for row in expected for _, c in row)


@pytest.mark.parametrize("n", [2, 5, 7])
def test_many_runs_merged_from_disk_count_the_same_as_one(tmp_path, n):
    tokens = zipf_tokens(10_000, 50_000)
    windows = Windows(n, 50_000, end_of_text=7)
    memory = 120 * 1500
    layout = plan(len(tokens), windows, memory)
    assert layout.parts > 4 and layout.run == 1500
    many = count(tokens, windows, tmp_path / "many", memory=memory)
    assert contents(many) == dictionary(tokens, n, end_of_text=7)
    assert not (tmp_path / "many" / "runs").exists()


def test_counting_stays_within_the_memory_that_was_announced(tmp_path):
    tokens = zipf_tokens(200_000, 5000).astype(np.uint16)
    windows = Windows(5, 5000)
    layout = plan(len(tokens), windows, 6e6)
    assert layout.parts > 1 and layout.memory <= 6e6
    tracemalloc.start()
    count(tokens, windows, tmp_path, memory=6e6)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < layout.memory + 1e6  # of the interpreter's own
    assert peak > 0.4 * layout.memory  # it is no empty announcement


class Killed(Exception):
    """Stands for a signal."""


@pytest.mark.parametrize("writes_until_death", [1, 40, 100, 150])
def test_counting_goes_on_where_it_was_killed(tmp_path, monkeypatch, writes_until_death):
    tokens, windows, memory = zipf_tokens(8000, 300), Windows(3, 300), 120 * 1000
    expected = dictionary(tokens, 3)
    left = writes_until_death
    original = ngram_counts.write_at

    def dying(*arguments):
        nonlocal left
        left -= 1
        original(*arguments)
        if left == 0:
            raise Killed

    monkeypatch.setattr(ngram_counts, "write_at", dying)
    with pytest.raises(Killed):
        count(tokens, windows, tmp_path, memory=memory)
    state = json.loads(path.read_text()) if (path := tmp_path / "state.json").exists() else {}
    runs_read = []
    keys = ngram_counts.keys

    def watched(tokens, start, stop, windows):
        runs_read.append(start)
        return keys(tokens, start, stop, windows)

    monkeypatch.setattr(ngram_counts, "keys", watched)
    assert contents(count(tokens, windows, tmp_path, memory=memory)) == expected
    assert runs_read[:1] in ([state.get("read", 0)], [])


def test_a_finished_table_is_read_back_and_another_text_refused(tmp_path):
    tokens, windows = zipf_tokens(1000, 50), Windows(3, 50)
    first = count(tokens, windows, tmp_path, identity="one")
    assert contents(count(tokens, windows, tmp_path, identity="one")) == contents(first)
    with pytest.raises(UserError, match="holds counts with identity='one'; now identity='two'"):
        count(tokens, windows, tmp_path, identity="two")
    with pytest.raises(UserError, match="holds counts with n=3; now n=4"):
        count(tokens, Windows(4, 50), tmp_path, identity="one")


def test_a_sample_has_the_size_asked_for_and_is_drawn_evenly(tmp_path):
    tokens = np.arange(1000)  # every window occurs once
    drawn = np.zeros(999)
    for seed in range(30):
        table = count(
            tokens, Windows(2, 1000, sample=100, seed=seed), tmp_path / str(seed), memory=120 * 1200
        )
        assert table.n_windows == len(table.tokens) == 100
        drawn[table.tokens - 1] += 1
    # Binomial(30, 0.1): mean 3, standard deviation 1.64; of 999 the greatest is below 6 of these.
    assert drawn.mean() == pytest.approx(30 * 100 / 999)
    assert drawn.std() == pytest.approx(np.sqrt(30 * 0.1 * 0.9), rel=0.1) and drawn.max() < 13
    whole = count(tokens, Windows(2, 1000, sample=5000), tmp_path / "whole")
    assert whole.n_windows == 999


def test_blocks_are_the_whole_table_in_pieces(tmp_path):
    table = count(zipf_tokens(3000, 40), Windows(3, 40), tmp_path)
    for pairs in (1, 7, 10**6):
        blocks = list(table.blocks(pairs))
        np.testing.assert_array_equal(np.concatenate([b[2] for b in blocks]), table.tokens)
        offsets = np.cumsum([0, *(len(b[2]) for b in blocks[:-1])])
        starts = [b[1] + offset for b, offset in zip(blocks, offsets, strict=True)]
        np.testing.assert_array_equal(np.concatenate(starts), table.starts)
        assert [b[0] for b in blocks] == np.cumsum([0, *(len(b[1]) for b in blocks[:-1])]).tolist()


@pytest.mark.parametrize(
    ("tokens", "fields", "message"),
    [
        ([], {}, "the corpus has 0 tokens; at least 3 are needed for one 3-gram"),
        ([1], {}, "the corpus has 1 tokens; at least 3 are needed for one 3-gram"),
        ([1, 2], {}, "the corpus has 2 tokens; at least 3 are needed for one 3-gram"),
        ([1, 9, 1], {}, "token id 9 is not one of a vocabulary of 9"),
        ([1, -1, 1], {}, "token id -1 is not one of a vocabulary of 9"),
        ([1, 2, 3], {"end_of_text": 2}, "no document of the corpus has 3 tokens"),
        ([1, 2, 3], {"n": 8}, "n=8 is not allowed; n-grams have 2 to 7 tokens"),
        ([1, 2, 3], {"sample": 0}, "a sample of 0 windows is not allowed; take at least 1"),
        ([1], {"n": 7, "vocab_size": 2**20}, "at most 262,144 ids do, or take a smaller n"),
    ],
)
def test_what_cannot_be_counted_is_one_line(tmp_path, tokens, fields, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        count(np.array(tokens, int), Windows(**({"n": 3, "vocab_size": 9} | fields)), tmp_path)
    assert "\n" not in str(error.value)


def test_too_little_memory_is_said():
    with pytest.raises(UserError, match="too little to count windows; give more"):
        plan(10**6, Windows(3, 9), memory=1e4)


def test_the_largest_id_is_found_across_pieces():
    assert largest_id(np.array([3, 9, 4, 1]), at_once=2) == 9
    with pytest.raises(UserError, match="no tokens"):
        largest_id(np.zeros(0, int))
