"""Text to token ids and back: a byte-level BPE trained on the corpus, or a `tokenizer.json` given.

A document is encoded as plain text throughout: where it spells out a special token, it gets the
tokens of the spelling, so that end-of-text stands nowhere but at the end of documents.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bottleneck.errors import UserError

END_OF_TEXT = "<|endoftext|>"
_END_OF_TEXT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>")

# The merges of a vocabulary settle long before this; it bounds the time and the memory.
TRAINING_BYTES = 2**29

# Characters encoded in one piece, which is the work of one core.
_PIECE = 2**16


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of the first TRAINING_BYTES of the texts, the same each time.

    Args:
        vocab_size: at least 257, the bytes and the end of text; the vocabulary is smaller where
            the texts have no more pairs to merge.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_first_bytes(texts, TRAINING_BYTES), trainer)
    return _for_plain_text(tokenizer)


def load(path: Path) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`; raises `UserError` where there is no valid one."""
    return parse(read_file(path), path)


def parse(contents: bytes, path: Path) -> Tokenizer:
    """The same of contents that were read from a path already."""
    try:
        return _for_plain_text(Tokenizer.from_str(contents.decode()))
    except Exception as error:  # the library raises no narrower class
        raise UserError(f"config.data.tokenizer: {path} is no tokenizer.json: {error}") from error


def vocab_size_in_file(path: Path) -> int:
    """One more than the greatest id in a `tokenizer.json`, added tokens included.

    Reads the JSON alone, in milliseconds. Raises `UserError` where there is none.
    """
    raw = read_file(path)
    try:
        contents = json.loads(raw)
        vocabulary = contents["model"]["vocab"]
        # A unigram model lists its tokens by id, the others map them to ids.
        by_id = range(len(vocabulary)) if isinstance(vocabulary, list) else vocabulary.values()
        return max([*by_id, *(token["id"] for token in contents.get("added_tokens") or ())]) + 1
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__} {error}"
        raise UserError(f"config.data.tokenizer: {path} is no tokenizer.json: {reason}") from error


def read_file(path: Path) -> bytes:
    """The contents of a `tokenizer.json`; raises `UserError` where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"config.data.tokenizer: cannot read {path}: {error.strerror}") from error


def end_of_text(tokenizer: Tokenizer) -> int:
    """The id of the end-of-text token; raises `UserError` where it has none of the known names."""
    for name in _END_OF_TEXT_NAMES:
        if (token := tokenizer.token_to_id(name)) is not None:
            return token
    names = ", ".join(_END_OF_TEXT_NAMES)
    raise UserError(f"config.data.tokenizer has no end-of-text token; it must have one of {names}")


def vocab_size(tokenizer: Tokenizer) -> int:
    """One more than the greatest id."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[np.ndarray]:
    """The ids of each text, uint32 [tokens], on all cores, with no special token added.

    A long text is cut where a space follows something else, where the common byte-level
    tokenizers never join, so that the pieces have the tokens of the whole. Only a run of _PIECE
    characters without such a place is cut at another.
    """
    pieces = [list(_pieces(text)) for text in texts]
    flat = [piece for of_text in pieces for piece in of_text]
    encodings = iter(tokenizer.encode_batch_fast(flat, add_special_tokens=False))
    none = np.zeros(0, np.uint32)
    return [
        np.concatenate([none, *(np.array(next(encodings).ids, np.uint32) for _ in of_text)])
        for of_text in pieces
    ]


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > _PIECE:
        cut = text.rfind(" ", start + 1, start + _PIECE)
        while cut > 0 and text[cut - 1].isspace():
            cut = text.rfind(" ", start + 1, cut)
        cut = cut if cut > 0 else start + _PIECE
        yield text[start:cut]
        start = cut
    yield text[start:]


def _first_bytes(texts: Iterable[str], limit: int) -> Iterator[str]:
    for text in texts:
        if limit <= 0:
            return
        limit -= len(text.encode())
        yield from _pieces(text)


def _for_plain_text(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # as plain text
    return tokenizer
