"""Whatever happens to the files of a token cache, what is read is what was written, or an error."""

import json
import os
import random
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bottleneck.config import DataConfig
from bottleneck.data import manifest, shards
from bottleneck.data.batches import Batches, validation_windows
from bottleneck.data.tokens import TokenCache, open_cache, prepare
from bottleneck.errors import UserError
from bottleneck.storage import json_files

SPLITS = ("train", "validation")
BLOCK = 64  # bytes, 32 tokens


@dataclass(frozen=True)
class Whole:
    """A cache, and what is in it."""

    path: Path
    contents: dict[str, Any] = field(repr=False)


def contents_of(cache: TokenCache) -> dict[str, Any]:
    tokens = {split: cache.tokens(split)[:].tolist() for split in SPLITS}
    counts = cache.unigram_counts().tolist()
    return tokens | {"tokenizer": cache.tokenizer().to_str(), "counts": counts}


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """Several shards of many blocks in a cache that is written in milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_TOKENS", 1000)
        patch.setattr(shards, "BLOCK_BYTES", BLOCK)
        yield


@pytest.fixture(scope="module", params=["text", "known_rank"])
def whole(request, tmp_path_factory, small_blocks) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    fields: dict[str, Any] = {"cache_dir": str(folder / "cache"), "validation_fraction": 0.2}
    if request.param == "text":
        rng = random.Random(0)
        texts = (" ".join(rng.choices("abcdefghij", k=40)) for _ in range(60))
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / "corpus.jsonl").write_text(lines)
        fields |= {"paths": (str(folder / "corpus.jsonl"),), "tokenizer_vocab_size": 260}
    else:
        fields |= {"language_tokens": 20, "language_rank": 3, "language_documents": 150}
    cache = prepare(DataConfig(corpus=request.param, **fields))
    assert len(cache.manifest.splits["train"].shards) > 1
    return Whole(cache.path, contents_of(cache))


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole.path, tmp_path / "copy"))


def flip(path: Path, bit: int) -> None:
    contents = bytearray(path.read_bytes())
    contents[bit // 8 % len(contents)] ^= 1 << bit % 8
    path.write_bytes(contents)


def check_refusal(refusal: UserError, path: Path) -> None:
    message = str(refusal)
    assert str(path) in message and "prepare --rebuild" in message and "\n" not in message


# What happens to a file, told by one random number.
DAMAGES = {
    "one bit": flip,
    "some bits": lambda path, n: [flip(path, n // k) for k in (1, 3, 7, 13)],
    "cut short": lambda path, n: os.truncate(path, n % path.stat().st_size),
    "longer": lambda path, n: path.write_bytes(path.read_bytes() + b"\0" * (n % 99 + 1)),
    "zeros": lambda path, n: path.write_bytes(bytes(path.stat().st_size)),
    "missing": lambda path, n: path.unlink(),
    "a folder": lambda path, n: (path.unlink(), path.mkdir()),
    "a link to itself": lambda path, n: (path.unlink(), path.symlink_to(path)),
}


@given(data=st.data(), damage=st.sampled_from(sorted(DAMAGES)), number=st.integers(0, 2**40))
def test_a_damaged_file_is_named_or_does_no_harm(whole, tmp_path_factory, data, damage, number):
    name = data.draw(st.sampled_from(sorted(path.name for path in whole.path.iterdir())))
    path = Path(shutil.copytree(whole.path, tmp_path_factory.mktemp("copy") / "cache"))
    DAMAGES[damage](path / name, number)
    try:
        found = contents_of(open_cache(path))
    except UserError as refusal:
        check_refusal(refusal, path / name)
    else:
        # White space of the manifest, or bits that were flipped back.
        assert found == whole.contents
    finally:
        shutil.rmtree(path)


def test_a_flipped_bit_anywhere_in_the_tokens_or_their_checksums_is_found(copy):
    names = sorted(path.name for path in copy.iterdir() if path.suffix in (".bin", ".crc32"))
    assert {name.partition("-")[0] for name in names} == set(SPLITS)
    for name in names:
        contents = (copy / name).read_bytes()
        for place in range(0, len(contents), 13):  # every block, and both bytes of tokens
            damaged = bytearray(contents)
            damaged[place] ^= 1 << place % 8
            (copy / name).write_bytes(damaged)
            with pytest.raises(UserError) as refusal:
                open_cache(copy).tokens(name.partition("-")[0])[:]
            check_refusal(refusal.value, copy / name)
        (copy / name).write_bytes(contents)


@given(
    bits=st.sets(st.integers(0, 8 * 2000 - 1), min_size=1, max_size=4),
    spans=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 200)), min_size=1, max_size=30),
)
def test_only_what_lies_in_a_damaged_block_is_refused(whole, tmp_path_factory, bits, spans):
    path = Path(shutil.copytree(whole.path, tmp_path_factory.mktemp("copy") / "cache"))
    shard = path / "train-00000.bin"
    n_bytes = shard.stat().st_size
    assert n_bytes == 2000
    for bit in bits:
        flip(shard, bit)
    bad = {bit // 8 // BLOCK for bit in bits}
    tokens, expected = open_cache(path).tokens("train"), whole.contents["train"]
    for start, length in spans:
        stop = min(start + length, len(expected))
        touched = range(start * 2 // BLOCK, -(-min(stop * 2, n_bytes) // BLOCK))
        if start < min(stop, n_bytes // 2) and bad.intersection(touched):
            first = min(bad.intersection(touched)) * BLOCK
            last = min(first + BLOCK, n_bytes)
            says = rf"train-00000\.bin is damaged: bytes {first:,} to {last:,} fail"
            with pytest.raises(UserError, match=says):
                tokens[start:stop]
        else:
            assert tokens[start:stop].tolist() == expected[start:stop]
    shutil.rmtree(path)


def test_what_is_cut_off_under_a_reader_is_an_error_and_not_a_signal(copy, whole):
    tokens = open_cache(copy).tokens("train")
    assert tokens[:500].tolist() == whole.contents["train"][:500]
    os.truncate(copy / "train-00000.bin", 600)
    for start in (200, 600):  # a block that was checked, and one that was not
        with pytest.raises(UserError, match=r"it has .* bytes instead of 2,000") as refusal:
            tokens[start : start + 200]
        check_refusal(refusal.value, copy / "train-00000.bin")
    assert tokens[:200].tolist() == whole.contents["train"][:200]


def test_a_file_that_changes_after_the_opening_is_found(copy, whole):
    cache = open_cache(copy)
    for path in copy.iterdir():
        flip(path, 1000)
    reads = [cache.tokenizer, cache.unigram_counts]
    reads += [lambda split=split: cache.tokens(split)[:] for split in SPLITS]
    for read in reads:
        with pytest.raises(UserError, match=r"is damaged: .* prepare --rebuild"):
            read()


def test_a_disk_that_fails_is_named(copy, monkeypatch):
    tokens = open_cache(copy).tokens("train")

    def failing(descriptor, n, place):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", failing)
    with pytest.raises(UserError, match=r"cannot read .*: Input/output error") as refusal:
        tokens[:10]
    check_refusal(refusal.value, copy / "train-00000.bin")


def test_a_read_that_ends_early_is_gone_on_with(copy, whole, monkeypatch):
    tokens, read = open_cache(copy).tokens("train"), os.pread
    monkeypatch.setattr(
        os, "pread", lambda descriptor, n, place: read(descriptor, min(n, 7), place)
    )
    assert tokens[:].tolist() == whole.contents["train"]


def test_a_block_is_checked_once(copy, monkeypatch):
    tokens, checksum, checked = open_cache(copy).tokens("train"), shards.zlib.crc32, []
    monkeypatch.setattr(
        shards.zlib, "crc32", lambda contents: checked.append(1) or checksum(contents)
    )
    for _ in range(3):
        tokens[40:100]  # bytes 80 to 200, in blocks 1 to 3
    assert len(checked) == 3


def test_threads_that_read_at_once_get_the_tokens_or_the_error(copy, whole):
    flip(copy / "train-00000.bin", 8 * 1000)  # in block 15, tokens 480 to 511
    tokens, expected = open_cache(copy).tokens("train"), whole.contents["train"]
    together = threading.Barrier(8)

    def read(seed: int) -> int:
        rng, refused = np.random.default_rng(seed), 0
        together.wait()
        for start in rng.integers(0, len(expected) - 50, 500):
            touches = start < 512 and start + 50 > 480
            try:
                assert tokens[start : start + 50].tolist() == expected[start : start + 50]
                assert not touches
            except UserError:
                assert touches
                refused += 1
        return refused

    with ThreadPoolExecutor(8) as pool:
        assert min(pool.map(read, range(8))) > 0


def test_batches_read_ahead_end_with_the_error(copy):
    flip(copy / "train-00000.bin", 8 * 1000)
    flip(copy / "validation-00000.bin", 0)
    cache = open_cache(copy)
    batches = Batches(cache, batch_size=4, sequence_length=16, seed=0)
    with pytest.raises(UserError, match=r"train-00000\.bin is damaged") as refusal:
        list(batches.iterate(0, batches.n_windows))
    assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match=r"validation-00000\.bin is damaged"):
        validation_windows(cache, 1000, 16)


def test_the_files_of_another_cache_are_not_taken_for_its_own(whole, copy, tmp_path):
    fields = {"language_tokens": 30, "language_rank": 3, "language_documents": 150}
    other = prepare(DataConfig(corpus="known_rank", cache_dir=str(tmp_path / "other"), **fields))
    for path in other.path.iterdir():
        if not (copy / path.name).exists():
            continue
        kept = (copy / path.name).read_bytes()
        shutil.copy(path, copy)
        if path.name == "manifest.json":
            with pytest.raises(UserError):
                contents_of(open_cache(copy))
        else:
            with pytest.raises(UserError) as refusal:
                contents_of(open_cache(copy))
            check_refusal(refusal.value, copy / path.name)
        (copy / path.name).write_bytes(kept)


def test_a_damaged_cache_is_mended_by_what_the_message_says(tmp_path):
    (tmp_path / "a.txt").write_text("some words " * 500)
    config = DataConfig(
        corpus="text",
        paths=(str(tmp_path / "a.txt"),),
        tokenizer_vocab_size=260,
        validation_fraction=0.0,
        cache_dir=str(tmp_path / "cache"),
    )
    cache = prepare(config)
    expected = contents_of(cache)
    for path in cache.path.iterdir():
        flip(path, 300)
    assert contents_of(prepare(config, rebuild=True)) == expected


def rewrite(folder: Path, change) -> None:
    """Changes a manifest and gives it the seal of what it then is."""
    fields = json_files.read(folder / manifest.MANIFEST, "")
    change(fields)
    json_files.write(folder / manifest.MANIFEST, fields)


@pytest.mark.parametrize("name", ["../secret.bin", "/secret.bin", "a/../../secret.bin", "..", ""])
@pytest.mark.parametrize("where", ["files", "shards"])
def test_a_manifest_that_names_files_outside_of_its_folder_is_refused(copy, name, where):
    def point_outside(fields):
        fields["files"][name] = next(iter(fields["files"].values()))
        if where == "shards":
            fields["splits"]["train"]["shards"] = [name]

    rewrite(copy, point_outside)
    with pytest.raises(UserError, match=r"it names .*, which is not in its folder"):
        open_cache(copy)


@pytest.mark.parametrize("dtype", ["O", "<u8", "V8", ">u2", "f4", 2])
def test_a_manifest_with_another_type_of_tokens_is_refused(copy, dtype):
    rewrite(copy, lambda fields: fields.update(dtype=dtype))
    with pytest.raises(UserError, match=r"its dtype .* must be one of <u2, <u4"):
        open_cache(copy)
