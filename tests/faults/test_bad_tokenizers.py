"""Tokenizer files that are broken or odd give the tokens of the text, or one line of refusal."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from bottleneck.config import DataConfig
from bottleneck.data import tokenizer as tokenization
from bottleneck.data.tokens import TokenCache, prepare
from bottleneck.errors import UserError

TEXTS = ["the cat sat on the mat", "a cat, and <eos> </s> <|endoftext|>", "naïve\n\n"]
BYTE_LEVEL = json.loads(tokenization.train(TEXTS, 300).to_str())
WORDS = {"type": "WordLevel", "unk_token": "?", "vocab": {"?": 0, "a": 1, "<eos>": 2}}


def file_of(model: dict[str, Any], *added: dict[str, Any], **parts: Any) -> dict[str, Any]:
    return {
        "version": "1.0",
        "added_tokens": list(added),
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": model,
        **parts,
    }


def added(name: str, token: int, special: bool = True) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": name, "special": special, **flags}


def prepared(folder: Path, tokenizer: bytes, texts: list[str]) -> TokenCache | str:
    """The cache of the texts, or the message of the refusal, which leaves nothing."""
    (folder / "tokenizer.json").write_bytes(tokenizer)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "corpus.jsonl").write_text(lines)
    config = DataConfig(
        corpus="text",
        paths=(str(folder / "corpus.jsonl"),),
        tokenizer=str(folder / "tokenizer.json"),
        validation_fraction=0.0,
        cache_dir=str(folder / "cache"),
    )
    try:
        return prepare(config)
    except UserError as refusal:
        left = [] if not (folder / "cache").exists() else (folder / "cache").iterdir()
        assert [path.name for path in left if path.suffix != ".lock"] == []
        assert len(str(refusal).splitlines()) == 1 and "config.data.tokenizer" in str(refusal)
        return str(refusal)


def check_tokens(cache: TokenCache, texts: list[str]) -> None:
    """The end of text ends texts and stands nowhere else, and every id has a row."""
    tokens = cache.tokens("train")[:]
    assert (tokens == cache.end_of_text).sum() == len(texts) and tokens[-1] == cache.end_of_text
    assert tokens.max() < cache.vocab_size


def paths_in(node: Any, path: tuple = ()) -> list[tuple]:
    """The places in a JSON value but those of single tokens and merges after the first few."""
    inner = node.items() if isinstance(node, dict) else enumerate(node)
    found = [path] if path else []
    for key, value in list(inner)[:8]:
        below = isinstance(value, (dict, list))
        found += paths_in(value, (*path, key)) if below else [(*path, key)]
    return found


odd = st.sampled_from(
    [None, True, -1, 0, 3.5, 2**31, 2**32 - 1, 2**70, "", "x", "(", [], {}, ["a"], {"a": 1}]
)


@given(place=st.sampled_from(paths_in(BYTE_LEVEL)), value=odd, remove=st.booleans())
def test_any_part_of_a_tokenizer_may_be_wrong(tmp_path_factory, place, value, remove):
    contents = copy.deepcopy(BYTE_LEVEL)
    node = contents
    for key in place[:-1]:
        node = node[key]
    if remove:
        del node[place[-1]]
    else:
        node[place[-1]] = value
    folder = tmp_path_factory.mktemp("wrong")
    found = prepared(folder, json.dumps(contents).encode(), TEXTS)
    if isinstance(found, TokenCache):
        check_tokens(found, TEXTS)


@given(kept=st.none() | st.integers(0, 6000), bits=st.lists(st.integers(0, 2**17), max_size=3))
def test_a_broken_file_is_refused_or_works(tmp_path_factory, kept, bits):
    contents = bytearray(json.dumps(BYTE_LEVEL).encode()[:kept])
    for bit in bits if contents else []:
        contents[bit // 8 % len(contents)] ^= 1 << bit % 8
    found = prepared(tmp_path_factory.mktemp("broken"), bytes(contents), TEXTS)
    if isinstance(found, TokenCache):
        check_tokens(found, TEXTS)


UNIGRAM = {"type": "Unigram", "vocab": [["?", -9.0], ["</s>", 0.0], ["a", -1.0]], "unk_id": 0}
BROKEN_CHARS = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        (file_of(WORDS | {"vocab": {}}), "it has no tokens"),
        (file_of(UNIGRAM | {"vocab": []}), "it has no tokens"),
        (file_of(WORDS | {"vocab": {"?": 0, "<eos>": 2**32 - 1}}), "it has the id 4294967295"),
        (file_of(WORDS | {"vocab": {"?": 0, "<eos>": 1.5}}), "it has the id 1.5"),
        (file_of(WORDS | {"vocab": {"?": 0, "<eos>": True}}), "it has the id True"),
        (file_of(WORDS, added("<s>", 7)), "adds '<s>' as 7, which the library turns into 3"),
        (file_of(WORDS, added("<s>", 0)), "adds '<s>' as 0, which the library turns into 3"),
        (file_of(WORDS, version="9.9"), "Unknown tokenizer version"),
        (file_of(WORDS, normalizer=BROKEN_CHARS), "Cannot parse precompiled_charsmap"),
        (file_of(WORDS | {"vocab": {"?": 0, "a": 1}}), "has no end-of-text token"),
        # Refused by the library while it encodes.
        (file_of(WORDS | {"unk_token": "!"}), "cannot encode the corpus: WordLevel error"),
        (file_of(UNIGRAM | {"unk_id": None}), "cannot encode the corpus: Encountered an unknown"),
        (
            file_of(WORDS, pre_tokenizer={"type": "FixedLength", "length": 0}),
            "cannot encode the corpus: chunk size must be non-zero",
        ),
        # The end of text, in the middle of one.
        (file_of(WORDS), "encodes part of this text as '<eos>', its end of text"),
        (file_of(WORDS | {"unk_token": "<eos>"}), "encodes part of this text as '<eos>'"),
        (file_of(UNIGRAM, pre_tokenizer=None), "encodes part of this text as '</s>'"),
        (
            file_of(WORDS | {"vocab": {"?": 0}}, added("<eos>", 1, special=False)),
            "encodes part of this text as '<eos>'",
        ),
    ],
)
def test_what_would_give_wrong_tokens_or_a_traceback_is_refused(tmp_path, contents, says):
    found = prepared(tmp_path, json.dumps(contents).encode(), TEXTS)
    assert isinstance(found, str) and says in found


def test_a_special_end_of_text_is_spelled_out_where_a_text_has_it(tmp_path):
    found = prepared(tmp_path, json.dumps(BYTE_LEVEL).encode(), TEXTS)
    check_tokens(found, TEXTS)
    decoded = found.tokenizer().decode(found.tokens("train")[:].tolist(), skip_special_tokens=False)
    assert decoded == "".join(text + "<|endoftext|>" for text in TEXTS)


def test_ids_with_holes_survive_in_the_type_that_holds_them(tmp_path):
    words = {"?": 0, "a": 65_535, "b": 65_536, "c": 9_000_000, "<eos>": 16_000_000}
    contents = file_of(WORDS | {"vocab": words})
    found = prepared(tmp_path, json.dumps(contents).encode(), ["c b a", "b"])
    assert found.tokens("train")[:].tolist() == [
        words[w] for w in ["c", "b", "a", "<eos>", "b", "<eos>"]
    ]
    assert found.vocab_size == 16_000_001 and found.unigram_counts().sum() == 6


@pytest.mark.parametrize("greatest", [2**16 - 1, 2**16, 2**16 + 1])
def test_ids_around_the_greatest_of_two_bytes_survive(tmp_path, greatest):
    words = {f"w{i}": i for i in range(greatest)} | {"<eos>": greatest}
    contents = file_of(WORDS | {"unk_token": "w0", "vocab": words})
    ids = [0, 1, 65_534, greatest - 1]
    found = prepared(tmp_path, json.dumps(contents).encode(), [" ".join(f"w{i}" for i in ids)])
    assert found.tokens("train")[:].tolist() == [*ids, greatest]
    assert found.tokens("train")[:].dtype == (np.uint16 if greatest < 2**16 else np.uint32)


def test_dropout_is_left_out_so_that_tokens_are_the_same_each_time():
    trained = tokenization.train(["abab " * 100], 300)
    trained.model.dropout = 0.5
    path = Path("tokenizer.json")
    found = tokenization.parse(trained.to_str().encode(), path)
    ids = {tuple(tokenization.encode(found, ["abab abab"])[0]) for _ in range(50)}
    assert len(ids) == 1 and len(ids.pop()) < 5


@pytest.mark.parametrize("pieces", [1, 3, 10**6])
def test_the_tokens_do_not_depend_on_how_many_pieces_are_encoded_at_once(monkeypatch, pieces):
    trained = tokenization.train(TEXTS, 300)
    texts = ["the cat " * 100, "", *TEXTS, "on the mat " * 50]
    expected = [trained.encode(text, add_special_tokens=False).ids for text in texts]
    monkeypatch.setattr(tokenization, "_PIECE", 50)
    monkeypatch.setattr(tokenization, "_PIECES_AT_ONCE", pieces)
    assert [ids.tolist() for ids in tokenization.encode(trained, texts)] == expected


def test_a_file_of_300_000_tokens_is_read(tmp_path):
    vocabulary = {f"w{i}": i for i in range(300_000)} | {"<eos>": 300_000}
    model = models.WordLevel(vocabulary, unk_token="w0")  # noqa: S106
    found = tokenization.parse(Tokenizer(model).to_str().encode(), tmp_path)
    assert tokenization.vocab_size(found) == 300_001
