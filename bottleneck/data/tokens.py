"""The token cache: a corpus, tokenized once, in shards with a manifest.

A cache gets its name only when it is complete. Opening checks everything except the tokens, which
are checked as they are read. A cache is refused if a file or the corpus has changed since.
"""

import functools
import hashlib
import io
import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer

from bottleneck.config import DataConfig
from bottleneck.data import tokenizer as tokenization
from bottleneck.data.cache_writer import write_cache
from bottleneck.data.corpus import Corpus, open_corpus
from bottleneck.data.manifest import TOKENIZER, UNIGRAM_COUNTS, Manifest, read_manifest
from bottleneck.data.shards import CHECKSUMS, REBUILD, TokenSequence
from bottleneck.errors import UserError
from bottleneck.signals import removed
from bottleneck.storage.checksums import check, read_whole
from bottleneck.storage.folders import locked

FORMAT = 3  # of the cache; a new number makes every old cache unused

Split = Literal["train", "validation"]


@dataclass(frozen=True)
class TokenCache:
    """Tokens of a corpus, opened by `open_cache`; every document ends with `end_of_text`."""

    path: Path
    manifest: Manifest

    def tokens(self, split: Split) -> TokenSequence:
        """Tokens of a split, uint16 or uint32, read by slices."""
        shards, files = self.manifest.splits[split].shards, self.manifest.files
        return TokenSequence(self.path, shards, files, np.dtype(self.manifest.dtype))

    def n_tokens(self, split: Split) -> int:
        return self.manifest.splits[split].tokens

    def tokenizer(self) -> Tokenizer:
        return tokenization.parse(self._small_file(TOKENIZER), self.path / TOKENIZER)

    @property
    def vocab_size(self) -> int:
        """Largest id of the tokenizer plus 1."""
        return self.manifest.vocab_size

    @property
    def end_of_text(self) -> int:
        return self.manifest.end_of_text

    @property
    def digest(self) -> str:
        """Hash of all tokens and the tokenizer: caches with the same hash train the same."""
        files = sorted(self.manifest.files.items())
        # The tables of checksums follow from the tokens.
        lines = [f"{name} {info.sha256}" for name, info in files if not name.endswith(CHECKSUMS)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text per token of the training split, end-of-text tokens included."""
        train = self.manifest.splits["train"]
        return train.text_bytes / train.tokens

    def unigram_counts(self) -> np.ndarray:
        """Occurrences of each token in the training split, int64 [vocab_size]."""
        return np.load(io.BytesIO(self._small_file(UNIGRAM_COUNTS)), allow_pickle=False)

    @functools.cached_property
    def unigram_entropy(self) -> float:
        """Unigram entropy of the training split, −Σ p·log p, in nats per token."""
        counts = self.unigram_counts()
        p = counts[counts > 0] / counts.sum()
        return float(-np.sum(p * np.log(p)))

    def verify(self) -> None:
        """Reads every file whole; raises `UserError` naming the first that has changed."""
        for name, info in self.manifest.files.items():
            check(self.path / name, info, REBUILD)

    def _small_file(self, name: str) -> bytes:
        return read_whole(self.path / name, self.manifest.files[name], REBUILD)


def prepare(config: DataConfig, *, rebuild: bool = False) -> TokenCache:
    """Returns the token cache of a corpus; builds it if it is missing.

    If several processes call it at once, one builds and the others wait. `rebuild` replaces an
    existing cache.

    Raises `UserError` if the corpus is missing or has changed since the cache was built, or the
    cache is damaged or cannot be written.
    """
    corpus = open_corpus(config)
    tokens, tokenizer = _tokenizer(config, corpus)
    made_of = {
        "format": FORMAT,
        "corpus": corpus.description,
        "tokenizer": tokenizer,
        "validation_fraction": config.validation_fraction,
    }
    request = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", corpus.name)[:60]
    folder = Path(config.cache_dir).expanduser().absolute()
    path = folder / f"{readable}-{tokens}-{request[:12]}"
    is_found = path.exists() and not rebuild
    if not is_found:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(
                path.with_name(f".{path.name}.lock"),
                lambda holder: _say(f"tokens: waiting for {holder}, which is making {path}"),
            ):
                if rebuild or not path.exists():
                    _make(path, config, corpus, made_of)
        except OSError as error:
            raise UserError(
                f"cannot write {path}: {error.strerror or error}; config.data.cache_dir must be a "
                f"writable folder with about {corpus.fingerprint.bytes:,} bytes free"
            ) from error
    cache = open_cache(path)
    was, now = cache.manifest.fingerprint, corpus.fingerprint
    if was != now:
        difference = (
            f"it had {was.files:,} files of {was.bytes:,} bytes, now {now.files:,} of {now.bytes:,}"
        )
        if (was.files, was.bytes) == (now.files, now.bytes):
            difference = "the contents, name or time of a file is different"
        raise UserError(f"the corpus has changed since {path} was made: {difference}; {REBUILD}")
    _say(
        f"tokens: {'found' if is_found else 'made'} {path}, "
        f"{cache.n_tokens('train'):,} for training, {cache.n_tokens('validation'):,} for validation"
    )
    return cache


def open_cache(path: Path) -> TokenCache:
    """Opens the cache in a folder; raises `UserError` if a file does not match the manifest.

    Checks only the sizes of shards: they may have hundreds of gigabytes.
    """
    manifest = read_manifest(path)
    shards = {name for split in manifest.splits.values() for name in split.shards}
    for name, info in manifest.files.items():
        check(path / name, info, REBUILD, size_only=name in shards)
    return TokenCache(path, manifest)


def _tokenizer(config: DataConfig, corpus: Corpus) -> tuple[str, str]:
    """Returns a word for the tokenizer of the cache, and what tells it from any other."""
    if corpus.tokenizer is not None:
        return "own", "the corpus's own"
    if config.tokenizer is None:
        size = config.tokenizer_vocab_size
        return f"bpe{size}", f"byte-level BPE, {size} tokens"
    contents = tokenization.read_file(Path(config.tokenizer).expanduser())
    return "given", hashlib.sha256(contents).hexdigest()


def _make(path: Path, config: DataConfig, corpus: Corpus, made_of: dict[str, Any]) -> None:
    """Writes a cache under a temporary name, then renames it."""
    folder = path.with_name(f".{path.name}.unfinished")
    old = path.with_name(f".{path.name}.old")
    for left_behind in (folder, old):  # by a process that was killed
        shutil.rmtree(left_behind, ignore_errors=True)
    _say(f"tokens: making {path} from {corpus.fingerprint.bytes / 1e6:,.1f} MB of {corpus.name}")
    with removed(folder), removed(old):
        folder.mkdir()
        write_cache(folder, config, corpus, made_of)
        if path.exists():
            path.rename(old)  # its readers keep their open files
        folder.rename(path)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
