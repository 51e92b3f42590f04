"""Windows and batches: what is read at which step, and what is held out."""

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import HANGING

from bottleneck.data.batches import Batches, validation_windows
from bottleneck.data.corpus import Fingerprint
from bottleneck.data.manifest import Manifest, SplitInfo
from bottleneck.data.shards import ShardWriter
from bottleneck.data.tokens import TokenCache, open_cache
from bottleneck.errors import UserError

END = 7  # of text


def write_cache(folder: Path, train: np.ndarray, validation: np.ndarray) -> TokenCache:
    """A cache of the given tokens."""
    splits, files = {}, {}
    for split, tokens in (("train", train), ("validation", validation)):
        writer = ShardWriter(folder, split, np.dtype("<u4"))
        writer.append(np.asarray(tokens, np.uint32))
        writer.close()
        splits[split] = SplitInfo(1, len(tokens), len(tokens), writer.shards)
        files |= writer.files
    Manifest({}, Fingerprint(1, 1, ""), 2**31, END, "<u4", 0, 0, splits, files).write(folder)
    return open_cache(folder)


@pytest.fixture
def cache(tmp_path) -> TokenCache:
    """Tokens that are their own places: 23 windows of 10 and a rest in training."""
    return write_cache(tmp_path, np.arange(1000, 1235), np.arange(5000, 5042))


def batches_of(cache: TokenCache, seed: int = 0, batch_size: int = 4) -> Batches:
    return Batches(cache, batch_size=batch_size, sequence_length=10, seed=seed)


def order(batches: Batches, windows: range) -> list[int]:
    """The windows at these places of the training, told by their first tokens."""
    steps = range(windows.start // batches.batch_size, windows.stop // batches.batch_size + 1)
    first = np.concatenate([batches.batch(step)["inputs"][:, 0] for step in steps])
    start = windows.start - steps.start * batches.batch_size
    return ((first - 1000) // 10)[start : start + len(windows)].tolist()


def test_every_window_comes_once_in_every_epoch_in_a_new_order(cache):
    batches = batches_of(cache)
    assert batches.n_windows == 23
    epochs = [order(batches, range(23 * e, 23 * (e + 1))) for e in range(4)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(23))
        assert epoch != list(range(23))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_every_token_but_the_first_and_the_rest_is_a_target_once_an_epoch(cache):
    batches = batches_of(cache, batch_size=23)
    assert sorted(batches.batch(0)["targets"].ravel()) == list(range(1001, 1231))


def test_a_target_is_the_token_after_its_input(cache):
    batch = batches_of(cache).batch(3)
    np.testing.assert_array_equal(batch["targets"], batch["inputs"] + 1)
    np.testing.assert_array_equal(batch["targets"][:, :-1], batch["inputs"][:, 1:])
    assert (batch["weights"] == 1).all()
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        "inputs": ((4, 10), "int32"),
        "targets": ((4, 10), "int32"),
        "weights": ((4, 10), "float32"),
    }


def test_a_batch_depends_on_seed_and_step_alone(cache):
    used = batches_of(cache, seed=3)
    for step in (9, 2, 40, 0):
        used.batch(step)
    for step in (0, 5, 6, 1000):
        np.testing.assert_array_equal(
            used.batch(step)["inputs"], batches_of(cache, seed=3).batch(step)["inputs"]
        )


def test_seeds_have_orders_of_their_own_in_every_epoch(cache):
    orders = {
        tuple(order(batches_of(cache, seed), range(23 * epoch, 23 * (epoch + 1))))
        for seed in range(5)
        for epoch in range(5)
    }
    assert len(orders) == 25


def test_any_seed_will_do(cache):
    assert order(batches_of(cache, 2**40), range(23)) != order(batches_of(cache, 0), range(23))


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("step", [0, 5, 77])  # step 5 goes on into the second epoch
def test_the_rows_of_all_hosts_are_the_batch(cache, hosts, step):
    batches, rows = batches_of(cache), 4 // hosts
    parts = [batches.batch(step, slice(i * rows, (i + 1) * rows)) for i in range(hosts)]
    for name, whole in batches.batch(step).items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole)


def test_iterating_gives_the_batches_of_the_steps_from_any_on(cache):
    batches = batches_of(cache)
    for start, stop in ((0, 8), (5, 9), (6, 6)):
        found = list(batches.iterate(start, stop, slice(1, 3)))
        assert [step for step, _ in found] == list(range(start, stop))
        for step, batch in found:
            for name, array in batches.batch(step, slice(1, 3)).items():
                np.testing.assert_array_equal(batch[name], array)


def test_iterating_reads_ahead_and_ends_when_closed(cache, monkeypatch):
    batches = batches_of(cache)
    second_was_read = threading.Event()
    readers, batch_of = set(), batches.batch

    def watched(step, rows):
        readers.add(threading.current_thread())
        if step == 1:
            second_was_read.set()
        return batch_of(step, rows)

    monkeypatch.setattr(batches, "batch", watched)
    iterator = batches.iterate(0, 10**9)
    assert next(iterator)[0] == 0
    assert second_was_read.wait(timeout=HANGING)  # though nobody asked for it
    assert threading.current_thread() not in readers
    iterator.close()
    for reader in readers:
        reader.join(timeout=HANGING)
        assert not reader.is_alive()


def test_a_split_shorter_than_a_window_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has 10 tokens, fewer than .*sequence_length \+ 1 = 11"):
        batches_of(write_cache(tmp_path, np.arange(10), np.arange(50)))


def test_a_split_of_one_window_is_repeated(tmp_path):
    batches = batches_of(write_cache(tmp_path, np.arange(1000, 1011), np.arange(50)))
    assert order(batches, range(9)) == [0] * 9


def test_a_small_validation_split_is_taken_whole(cache):
    found = validation_windows(cache, n_tokens=1000, sequence_length=10)
    assert found["weights"].sum() == 41  # 42 tokens
    is_real = found["weights"] == 1
    assert found["targets"][is_real].tolist() == list(range(5001, 5042))
    assert found["inputs"][is_real].tolist() == list(range(5000, 5041))
    assert found["inputs"].shape == (5, 10) and is_real[-1].tolist() == [True] + [False] * 9
    assert (found["inputs"][~is_real] < cache.vocab_size).all()


@pytest.mark.parametrize("n_tokens", [10, 25, 39, 40])
def test_of_a_large_validation_split_whole_windows_are_taken(cache, n_tokens):
    found = validation_windows(cache, n_tokens, sequence_length=10)
    assert found["inputs"].shape == (n_tokens // 10, 10) and (found["weights"] == 1).all()
    np.testing.assert_array_equal(found["targets"], found["inputs"] + 1)


def test_validation_windows_are_spread_evenly(tmp_path):
    cache = write_cache(tmp_path, np.arange(50), np.arange(10_001))
    starts = validation_windows(cache, n_tokens=130, sequence_length=10)["inputs"][:, 0]
    assert len(starts) == 13 and starts[0] == 0
    # 1000 windows over 13: steps of 76 or 77 windows.
    assert set(np.diff(starts) // 10) == {76, 77} and starts[-1] + 770 >= 10_000


def test_validation_windows_are_the_same_each_time(cache):
    first, second = (validation_windows(cache, 30, 10) for _ in range(2))
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    n_tokens=st.integers(4, 400),
    length=st.integers(2, 12),
)
def test_targets_know_their_document(tmp_path_factory, lengths, n_tokens, length):
    tokens = np.concatenate([np.append(np.full(n, 100 + i), END) for i, n in enumerate(lengths)])
    owner = np.concatenate([np.full(n + 1, i) for i, n in enumerate(lengths)])
    cache = write_cache(tmp_path_factory.mktemp("cache"), np.arange(50), tokens)
    found = validation_windows(cache, n_tokens, length)
    n_windows, n_full = len(found["inputs"]), (len(tokens) - 1) // length
    owners = []
    for i in range(n_windows):
        start = length * (i * n_full // n_windows if n_windows <= n_full else i)
        owners += owner[start + 1 : start + 1 + length].tolist()
    is_real = found["weights"] == 1
    numbers = {document: number for number, document in enumerate(sorted(set(owners)))}
    assert found["documents"][is_real].tolist() == [numbers[document] for document in owners]
    assert found["documents"].dtype == np.int32
    assert (found["documents"][~is_real] == 0).all()


@pytest.mark.parametrize("n", [0, 1])
def test_an_empty_validation_split_is_refused(tmp_path, n):
    with pytest.raises(UserError, match="validation_fraction must be larger"):
        validation_windows(write_cache(tmp_path, np.arange(50), np.arange(n)), 10, 10)
