"""Writes a token cache: one pass over the corpus for the tokenizer, another for the tokens."""

import io
import math
import os
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from bottleneck.config import DataConfig
from bottleneck.data import tokenizer as tokenization
from bottleneck.data.corpus import Corpus, validation_draw
from bottleneck.data.documents import Document
from bottleneck.data.manifest import TOKENIZER, UNIGRAM_COUNTS, Manifest, SplitInfo
from bottleneck.data.shards import ShardWriter, TokenSequence, token_dtype
from bottleneck.errors import UserError
from bottleneck.storage.checksums import info_of
from bottleneck.terminal import Progress

# Characters per batch: enough to occupy all cores, and no more, because an encoding takes a hundred
# times the memory of its ids.
_BATCH_CHARACTERS = 2**20
_BATCHES_AHEAD = 2
_COUNTED_TOKENS = 2**20  # per read


def write_cache(folder: Path, config: DataConfig, corpus: Corpus, made_of: dict[str, Any]) -> None:
    """Fills an empty folder with the tokens of a corpus and their manifest.

    Raises `UserError` if the corpus cannot be read, or one of the splits would be empty; `OSError`
    if the folder cannot be written.
    """
    tokenizer = _tokenizer(config, corpus)
    vocab_size = tokenization.vocab_size(tokenizer)
    end_of_text = tokenization.end_of_text(tokenizer)
    dtype = token_dtype(vocab_size)
    documents: Counter[str] = Counter()
    text_bytes: Counter[str] = Counter()
    empty = invalid = 0
    least_draw = 1.0
    with ExitStack() as stack:
        splits = ("train", "validation")
        writers = {s: stack.enter_context(closing(ShardWriter(folder, s, dtype))) for s in splits}
        found = stack.enter_context(closing(_shown(corpus, "tokenizing")))
        for document, tokens in _tokenized(found, tokenizer):
            invalid += document.was_invalid
            if not document.text:
                empty += 1
                continue
            if end_of_text in tokens:
                raise UserError(
                    f"{document.key}: config.data.tokenizer encodes part of this text as "
                    f"{tokenizer.id_to_token(end_of_text)!r}, its end of text; it must be a "
                    f"special token, and not the one for unknown text"
                )
            draw = validation_draw(document.text)
            least_draw = min(least_draw, draw)
            split = "validation" if draw < config.validation_fraction else "train"
            documents[split] += 1
            text_bytes[split] += len(document.text.encode())
            writers[split].append(np.append(tokens, np.uint32(end_of_text)))
    _check_splits(documents, config.validation_fraction, least_draw)

    train = TokenSequence(folder, writers["train"].shards, writers["train"].files, dtype)
    unigrams = np.zeros(vocab_size, np.int64)
    for start in range(0, len(train), _COUNTED_TOKENS):
        unigrams += np.bincount(train[start : start + _COUNTED_TOKENS], minlength=vocab_size)
    counts = io.BytesIO()  # np.save to a file hides why a write failed
    np.save(counts, unigrams)
    pretty = tokenizer.to_str(pretty=True).encode()
    files = {}
    for name, contents in ((TOKENIZER, pretty), (UNIGRAM_COUNTS, counts.getvalue())):
        (folder / name).write_bytes(contents)
        files[name] = info_of(contents)
    for writer in writers.values():
        files |= writer.files
    Manifest(
        made_of=made_of,
        fingerprint=corpus.fingerprint,
        vocab_size=vocab_size,
        end_of_text=end_of_text,
        dtype=dtype.str,
        empty_documents=empty,
        invalid_documents=invalid,
        splits={
            split: SplitInfo(documents[split], writer.tokens, text_bytes[split], writer.shards)
            for split, writer in writers.items()
        },
        files=files,
    ).write(folder)
    for path in [*folder.iterdir(), folder]:  # to disk, before the cache gets its final name
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _tokenizer(config: DataConfig, corpus: Corpus) -> Tokenizer:
    """Returns the corpus's own tokenizer, the given one, or one trained on the training split."""
    if corpus.tokenizer is not None:
        return corpus.tokenizer
    if config.tokenizer is not None:
        return tokenization.load(Path(config.tokenizer).expanduser())
    texts = (document.text for document in _shown(corpus, "training the tokenizer"))
    in_training = (text for text in texts if validation_draw(text) >= config.validation_fraction)
    return tokenization.train(in_training, config.tokenizer_vocab_size)


def _tokenized(
    documents: Iterable[Document], tokenizer: Tokenizer
) -> Iterator[tuple[Document, np.ndarray]]:
    """Yields each document with its tokens, in order; reading, encoding and the caller overlap."""
    with ThreadPoolExecutor(_BATCHES_AHEAD) as pool:
        pending: deque[tuple[list[Document], Any]] = deque()
        for batch in _batches(documents):
            texts = [document.text for document in batch]
            pending.append((batch, pool.submit(tokenization.encode, tokenizer, texts)))
            if len(pending) > _BATCHES_AHEAD:
                done, tokens = pending.popleft()
                yield from zip(done, tokens.result(), strict=True)
        for done, tokens in pending:
            yield from zip(done, tokens.result(), strict=True)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    yield batch


def _check_splits(documents: Counter[str], validation_fraction: float, least_draw: float) -> None:
    """Raises `UserError` if a split that should have documents has none."""
    if documents.total() == 0:
        raise UserError("config.data: the corpus holds no text")
    fraction = f"config.data.validation_fraction={validation_fraction}"
    n = f"{documents.total()} documents for validation"
    if not documents["train"]:
        raise UserError(f"{fraction} takes all {n}; more documents are needed")
    if not documents["validation"] and validation_fraction > 0:
        enough = math.ceil(least_draw * 1e4 + 1) / 1e4
        advice = f"take at least {enough}" if enough <= 0.5 else "more documents are needed"
        raise UserError(f"{fraction} takes none of the {n}; {advice}")


def _shown(corpus: Corpus, task: str) -> Generator[Document, None, None]:
    """Yields the documents of a corpus and shows the progress."""
    with Progress(task, max(corpus.fingerprint.bytes, 1), unit="bytes") as progress:
        for document in corpus.documents():
            yield document
            progress.show(document.position)
