"""Tokens on disk: written as a stream, read back as one sequence."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bottleneck.data import shards
from bottleneck.data.shards import ShardWriter, TokenSequence, token_dtype

lengths = st.lists(st.integers(0, 20), max_size=8)
bound = st.one_of(st.none(), st.integers(-70, 70))


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
    assert len(writer.shards) == -(-len(tokens) // 7) and writer.tokens == len(tokens)
    sequence = TokenSequence(folder, writer.shards, writer.files, np.dtype("<u2"))
    assert len(sequence) == len(tokens)
    np.testing.assert_array_equal(sequence[start:stop], tokens[start:stop])
    assert sequence[start:stop].dtype == np.uint16


def test_files_are_described_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_TOKENS", 100)
    writer = ShardWriter(tmp_path, "train", np.dtype("<u4"))
    writer.append(np.arange(250))
    writer.close()
    assert writer.shards == ["train-00000.bin", "train-00001.bin", "train-00002.bin"]
    assert sorted(writer.files) == sorted(path.name for path in tmp_path.iterdir())
    for name, info in writer.files.items():
        contents = (tmp_path / name).read_bytes()
        assert (info.bytes, info.sha256) == (len(contents), hashlib.sha256(contents).hexdigest())


@pytest.mark.parametrize("n", [0, 1, 99, 100, 101, 250])
def test_a_table_has_the_crc_of_every_block(tmp_path, monkeypatch, n):
    monkeypatch.setattr(shards, "BLOCK_BYTES", 100)
    writer = ShardWriter(tmp_path, "train", np.dtype("<u2"))
    for token in range(n):
        writer.append(np.array([token * 257]))
    writer.close()
    if n:
        contents = (tmp_path / "train-00000.bin").read_bytes()
        blocks = [contents[i : i + 100] for i in range(0, 2 * n, 100)]
        table = np.fromfile(tmp_path / "train-00000.crc32", "<u4").tolist()
        assert table == [crc32(block) for block in blocks]


def crc32(contents: bytes) -> int:
    """Bit by bit, by the polynomial of IEEE 802.3."""
    remainder = 0xFFFFFFFF
    for byte in contents:
        remainder ^= byte
        for _ in range(8):
            remainder = remainder >> 1 ^ (0xEDB88320 if remainder & 1 else 0)
    return remainder ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("vocab_size", "bytes_each"), [(1, 2), (65_536, 2), (65_537, 4), (2**31, 4)]
)
def test_the_type_on_disk_is_the_smallest_that_holds_every_id(vocab_size, bytes_each):
    dtype = token_dtype(vocab_size)
    assert dtype.itemsize == bytes_each and np.iinfo(dtype).max >= vocab_size - 1
