"""Tokens on disk: written as a stream, read back as one sequence."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bottleneck.data import shards
from bottleneck.data.shards import ShardWriter, TokenSequence, token_dtype

lengths = st.lists(st.integers(0, 20), max_size=8)
bound = st.one_of(st.none(), st.integers(-70, 70))


@settings(deadline=None)
@given(lengths=lengths, start=bound, stop=bound)
def test_what_is_appended_is_read_back_across_shards(tmp_path_factory, lengths, start, stop):
    folder = tmp_path_factory.mktemp("shards")
    tokens = np.arange(sum(lengths), dtype=np.uint32) + 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_TOKENS", 7)
        writer = ShardWriter(folder, "train", np.dtype("<u2"))
        for piece in np.split(tokens, np.cumsum(lengths)[:-1]) if lengths else []:
            writer.append(piece)
        writer.close()
    assert len(writer.files) == -(-len(tokens) // 7) and writer.tokens == len(tokens)
    sequence = TokenSequence([folder / name for name in writer.files], np.dtype("<u2"))
    assert len(sequence) == len(tokens)
    np.testing.assert_array_equal(sequence[start:stop], tokens[start:stop])
    assert sequence[start:stop].dtype == np.uint16


def test_files_are_described_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_TOKENS", 100)
    writer = ShardWriter(tmp_path, "train", np.dtype("<u4"))
    writer.append(np.arange(250))
    writer.close()
    assert list(writer.files) == ["train-00000.bin", "train-00001.bin", "train-00002.bin"]
    for name, info in writer.files.items():
        contents = (tmp_path / name).read_bytes()
        assert (info.bytes, info.sha256) == (len(contents), hashlib.sha256(contents).hexdigest())


@pytest.mark.parametrize(
    ("vocab_size", "bytes_each"), [(1, 2), (65_536, 2), (65_537, 4), (2**31, 4)]
)
def test_the_type_on_disk_is_the_smallest_that_holds_every_id(vocab_size, bytes_each):
    dtype = token_dtype(vocab_size)
    assert dtype.itemsize == bytes_each and np.iinfo(dtype).max >= vocab_size - 1
