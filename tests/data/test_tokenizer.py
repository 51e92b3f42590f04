"""Text to ids and back, and what is asked of a tokenizer that is given."""

import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

from bottleneck.config import DataConfig
from bottleneck.data import tokenizer as tokenization
from bottleneck.data.corpus import open_corpus
from bottleneck.errors import UserError

# Syllables make words that share parts, so that there is always another pair to merge.
SYLLABLES = [c + v for c in "bcdfghklmnpr" for v in "aeiou"]


def prose(n_words: int, seed: int = 0) -> str:
    rng = random.Random(seed)
    words = ("".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(n_words))
    return "".join(word + rng.choice([" ", " ", " ", "  ", ".\n\n", ",\n   "]) for word in words)


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return tokenization.train([prose(20_000)], 600)


@pytest.mark.parametrize("size", [257, 600, 2000])
def test_the_vocabulary_has_the_size_asked_for(size):
    tokenizer = tokenization.train([prose(20_000)], size)
    assert tokenization.vocab_size(tokenizer) == tokenizer.get_vocab_size() == size


def test_a_corpus_too_small_for_the_vocabulary_gives_a_smaller_one():
    # 256 bytes, the end of text, and the merges "ab" and "abab".
    assert tokenization.vocab_size(tokenization.train(["abab"], 600)) == 259


TRAIN = """
import hashlib
from bottleneck.config import DataConfig
from bottleneck.data import tokenizer
from bottleneck.data.corpus import open_corpus

texts = [document.text for document in open_corpus(DataConfig()).documents()][:30]
print(hashlib.sha256(tokenizer.train(texts, 1000).to_str().encode()).hexdigest())
"""


def test_every_process_trains_the_same_tokenizer():
    command = [sys.executable, "-c", TRAIN]
    outputs = [
        subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(2)
    ]
    texts = [document.text for document in open_corpus(DataConfig()).documents()][:30]
    here = hashlib.sha256(tokenization.train(texts, 1000).to_str().encode()).hexdigest()
    assert {here} == {output.stdout.strip() for output in outputs}


def test_training_reads_no_more_than_its_bound(monkeypatch):
    monkeypatch.setattr(tokenization, "TRAINING_BYTES", 1000)
    read = []

    def texts():
        for _ in range(100):
            read.append("ab " * 100)
            yield read[-1]

    tokenization.train(texts(), 300)
    assert len(read) <= 5  # 4 texts of 300 bytes reach the bound; one is looked at


@given(text=st.text(max_size=200))
@example("")
@example("\x00")
@example("a")
@example("<|endoftext|>")
@example(" \n\t\r\n   ")
@example("漢字 naïve 🙂‍👩‍🚀 \ufeff\ufffd")
@example("x" * 200_000)
def test_ids_decode_to_the_text(trained, text):
    (ids,) = tokenization.encode(trained, [text])
    assert trained.decode(ids.tolist(), skip_special_tokens=False) == text
    assert tokenization.end_of_text(trained) not in ids


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k"])
@pytest.mark.parametrize("piece", [64, 1000])
def test_a_text_in_pieces_has_the_tokens_of_the_whole(trained, monkeypatch, pattern, piece):
    tokenizer = Tokenizer.from_str(trained.to_str())
    if pattern == "cl100k":  # as of Llama 3 and others: joins newlines to what is before them
        words = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        spaces = r"\s*[\r\n]+|\s+(?!\S)|\s+"
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        split = pre_tokenizers.Split(Regex(f"{words}|{spaces}"), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    text = prose(5000, seed=1) + "x, 1 234  \n\n\t  y"
    whole = tokenizer.encode(text, add_special_tokens=False).ids
    monkeypatch.setattr(tokenization, "_PIECE", piece)
    assert len(list(tokenization._pieces(text))) > len(text) / piece
    np.testing.assert_array_equal(tokenization.encode(tokenizer, [text, "", "a"])[0], whole)


def test_texts_keep_their_order(trained):
    texts = [prose(5, seed=i) for i in range(50)] + [""]
    ids = tokenization.encode(trained, texts)
    assert [trained.decode(of_text.tolist()) for of_text in ids] == texts


def saved(tokenizer: Tokenizer, folder: Path) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def word_level() -> Tokenizer:
    vocabulary = {"[UNK]": 0, "a": 1, "b": 2}
    return Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106


def with_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_tokens(["    ", "\t\t"])
    tokenizer.add_special_tokens([AddedToken("<eos>", special=True)])
    return tokenizer


@pytest.mark.parametrize(
    "tokenizer",
    [
        tokenization.train(["abab"], 300),
        with_added_tokens(tokenization.train(["abab"], 300)),
        word_level(),
        with_added_tokens(word_level()),
        with_added_tokens(Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))),
    ],
    ids=["bpe", "bpe-added", "words", "words-added", "unigram-added"],
)
def test_the_vocabulary_size_read_from_the_file_is_the_librarys(tmp_path, tokenizer):
    path = saved(tokenizer, tmp_path)
    library = Tokenizer.from_file(str(path)).get_vocab_size(with_added_tokens=True)
    assert tokenization.vocab_size_in_file(path) == library
    assert tokenization.vocab_size(tokenization.load(path)) == library


@pytest.mark.parametrize("name", ["<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>"])
def test_end_of_text_is_found_by_its_common_names(name):
    tokenizer = word_level()
    tokenizer.add_special_tokens([name])
    assert tokenization.end_of_text(tokenizer) == 3


def test_a_tokenizer_without_end_of_text_is_refused():
    with pytest.raises(UserError, match=r"no end-of-text token; it must have one of <\|endoftext"):
        tokenization.end_of_text(word_level())


def test_a_given_tokenizer_neither_cuts_nor_pads_nor_adds(tmp_path, trained):
    given_one = Tokenizer.from_str(trained.to_str())
    given_one.enable_truncation(3)
    given_one.enable_padding(length=50)
    texts = [prose(40, seed=2), "a"]
    expected = tokenization.encode(trained, texts)
    found = tokenization.encode(tokenization.load(saved(given_one, tmp_path)), texts)
    for i in range(2):
        np.testing.assert_array_equal(found[i], expected[i])


WORDS = {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0}}


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"model": {}}',
        b'{"model": {"vocab": {}}}',
        b'{"model": {"vocab": {"a": "b"}}}',
        json.dumps({"model": WORDS}).encode()[:-5],
        b"[" * 100_000,
    ],
)
@pytest.mark.parametrize("read", [tokenization.load, tokenization.vocab_size_in_file])
def test_a_file_that_is_no_tokenizer_is_refused_in_one_line(tmp_path, contents, read):
    (tmp_path / "tokenizer.json").write_bytes(contents)
    with pytest.raises(UserError) as refusal:
        read(tmp_path / "tokenizer.json")
    assert f"config.data.tokenizer: {tmp_path}/tokenizer.json is no" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("read", [tokenization.load, tokenization.vocab_size_in_file])
def test_a_missing_tokenizer_is_refused(tmp_path, read):
    with pytest.raises(UserError, match=r"cannot read .*none.json: No such file or directory"):
        read(tmp_path / "none.json")
    with pytest.raises(UserError, match="Is a directory"):
        read(tmp_path)


def test_no_module_of_the_data_floor_imports_jax():
    modules = ["batches", "cache_writer", "corpus", "documents", "shards", "tokenizer", "tokens"]
    imports = "; ".join(f"import bottleneck.data.{name}" for name in modules)
    heavy = "('jax', 'flax', 'grain', 'tensorflow_datasets', 'pyarrow')"
    check = f"import sys; {imports}; print([m for m in {heavy} if m in sys.modules])"
    command = [sys.executable, "-c", check]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "[]\n"
