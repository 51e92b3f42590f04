"""Text to token ids and back: a byte-level BPE trained on the corpus, or a given `tokenizer.json`.

Documents are encoded as plain text. A special token spelled out in one gets the tokens of the
spelling, so the end of text occurs only at the end of documents.
"""

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

# Bounds time and memory; the merges of a vocabulary settle long before.
TRAINING_BYTES = 2**29

# Characters of a piece, which one core encodes, and pieces per call: an encoding takes a hundred
# times the memory of its ids.
_PIECE = 2**16
_PIECES_AT_ONCE = 16

# Limit of ids, many times the largest in use: arrays over the vocabulary reach to the largest id.
_MOST_IDS = 2**24


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE on the first TRAINING_BYTES of the texts; deterministic.

    `vocab_size` is at least 257. The vocabulary is smaller if there are no more pairs to merge.
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
    """Loads a `tokenizer.json`; raises `UserError` if it is missing or invalid."""
    return parse(read_file(path), path)


def parse(contents: bytes, path: Path) -> Tokenizer:
    """Parses the contents of a `tokenizer.json`; errors name the path."""
    _check_ids(contents, path)
    with _refusing(f"config.data.tokenizer: {path} is not a tokenizer.json"):
        tokenizer = _for_plain_text(Tokenizer.from_str(contents.decode()))
    # The library renumbers added tokens that leave a gap after the vocabulary.
    for token in json.loads(contents).get("added_tokens") or ():
        name, asked, given = token["content"], token["id"], tokenizer.token_to_id(token["content"])
        if given != asked:
            raise UserError(
                f"config.data.tokenizer: {path} adds {name!r} as {asked}, which the library turns "
                f"into {given}; ids of added tokens must follow the vocabulary without a gap"
            )
    return tokenizer


def vocab_size_in_file(path: Path) -> int:
    """Returns the largest id in a `tokenizer.json` plus 1, added tokens included.

    Reads only the JSON, in milliseconds. Raises `UserError` if it is missing or invalid.
    """
    return _check_ids(read_file(path), path)


def _check_ids(raw: bytes, path: Path) -> int:
    """Returns the largest id plus 1; raises `UserError` if an id is not a valid number."""
    try:
        contents = json.loads(raw)
        vocabulary = contents["model"]["vocab"]
        # A unigram model lists its tokens by id; other models map tokens to ids.
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
        raise UserError(
            f"config.data.tokenizer: {path} is not a tokenizer.json: {reason}"
        ) from error


def read_file(path: Path) -> bytes:
    """Reads a `tokenizer.json`; raises `UserError` if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"config.data.tokenizer: cannot read {path}: {error.strerror}") from error


def end_of_text(tokenizer: Tokenizer) -> int:
    """Returns the id of the end-of-text token; raises `UserError` if no known name exists."""
    for name in _END_OF_TEXT_NAMES:
        if (token := tokenizer.token_to_id(name)) is not None:
            return token
    names = ", ".join(_END_OF_TEXT_NAMES)
    raise UserError(f"config.data.tokenizer has no end-of-text token; it must have one of {names}")


def vocab_size(tokenizer: Tokenizer) -> int:
    """Largest id plus 1."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[np.ndarray]:
    """Returns the ids of each text, uint32 [tokens], without special tokens; uses all cores.

    A long text is cut before a space that follows another character. Common byte-level tokenizers
    never merge across it, so the pieces have the tokens of the whole. A run of _PIECE characters
    without such a space is cut at its end.

    Raises `UserError` if the tokenizer has no token for part of a text.
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
def _refusing(problem: str) -> Iterator[None]:
    """Raises a one-line `UserError` for any error of the library in the block."""
    try:
        yield
    # The library has no error class of its own, and a panic of its Rust code is no Exception.
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise UserError(f"{problem}: {' '.join(str(error).split())}") from error
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
        tokenizer.model.dropout = None  # random: different tokens each time
    return tokenizer
