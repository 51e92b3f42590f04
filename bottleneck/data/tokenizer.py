"""Text to token ids and back: a byte-level BPE trained on the corpus, or a `tokenizer.json` given.

A document is encoded as plain text throughout: where it spells out a special token, it gets the
tokens of the spelling, so that end-of-text stands nowhere but at the end of documents.
"""

from __future__ import annotations

import contextlib
import itertools
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

# Characters encoded in one piece, which is the work of one core, and pieces encoded at a time, as
# an encoding takes a hundred times the memory of its ids.
_PIECE = 2**16
_PIECES_AT_ONCE = 16

# Ids of a tokenizer, many times those of the largest in use. Arrays over the vocabulary have as
# many entries as the greatest id, whether there are tokens for the others or not.
_MOST_IDS = 2**24


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
    _check_ids(contents, path)
    with _refusing(f"config.data.tokenizer: {path} is no tokenizer.json"):
        tokenizer = _for_plain_text(Tokenizer.from_str(contents.decode()))
    # The library renumbers added tokens that do not follow upon the others.
    for token in json.loads(contents).get("added_tokens") or ():
        name, asked, given = token["content"], token["id"], tokenizer.token_to_id(token["content"])
        if given != asked:
            raise UserError(
                f"config.data.tokenizer: {path} adds {name!r} as {asked}, which the library takes "
                f"as {given}; ids of added tokens must follow those of the vocabulary without a gap"
            )
    return tokenizer


def vocab_size_in_file(path: Path) -> int:
    """One more than the greatest id in a `tokenizer.json`, added tokens included.

    Reads the JSON alone, in milliseconds. Raises `UserError` where there is none.
    """
    return _check_ids(read_file(path), path)


def _check_ids(raw: bytes, path: Path) -> int:
    """One more than the greatest id; raises `UserError` where one is not a number of a token."""
    try:
        contents = json.loads(raw)
        vocabulary = contents["model"]["vocab"]
        # A unigram model lists its tokens by id, the others map them to ids.
        by_id = range(len(vocabulary)) if isinstance(vocabulary, list) else vocabulary.values()
        ids = [*by_id, *(token["id"] for token in contents.get("added_tokens") or ())]
        if not ids:
            raise ValueError("it has no tokens")
        if wrong := [i for i in ids if type(i) is not int or not 0 <= i < _MOST_IDS]:
            raise ValueError(
                f"it has the id {wrong[0]!r}; ids are numbers from 0 to {_MOST_IDS - 1:,}"
            )
        return max(ids) + 1
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__} {error}"
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

    Raises `UserError` where the tokenizer has no token for a part of a text.

    A long text is cut where a space follows something else, where the common byte-level
    tokenizers never join, so that the pieces have the tokens of the whole. Only a run of _PIECE
    characters without such a place is cut at another.
    """
    pieces = [list(_pieces(text)) for text in texts]
    ids = _encoded(tokenizer, itertools.chain.from_iterable(pieces))
    none = np.zeros(0, np.uint32)
    return [np.concatenate([none, *itertools.islice(ids, len(of_text))]) for of_text in pieces]


def _encoded(tokenizer: Tokenizer, pieces: Iterator[str]) -> Iterator[np.ndarray]:
    while some := list(itertools.islice(pieces, _PIECES_AT_ONCE)):
        with _refusing("config.data.tokenizer cannot encode the corpus"):
            encodings = tokenizer.encode_batch_fast(some, add_special_tokens=False)
        yield from (np.array(encoding.ids, np.uint32) for encoding in encodings)


@contextlib.contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Raises a `UserError` for whatever the library raises, in one line."""
    try:
        yield
    # The library has no class of its own, and what its Rust code gives up on is no Exception.
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise UserError(f"{what}: {' '.join(str(error).split())}") from error
        raise


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
    if isinstance(tokenizer.model, models.BPE):
        tokenizer.model.dropout = None  # by chance, and other tokens each time
    return tokenizer
