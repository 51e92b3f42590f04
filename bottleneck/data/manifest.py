"""The manifest of a token cache: what is in it, what it was made of, and what its files must be."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bottleneck.data.corpus import Fingerprint
from bottleneck.data.shards import CHECKSUMS, DTYPES, REBUILD
from bottleneck.storage import json_files
from bottleneck.storage.checksums import FileInfo, damaged, infos_in

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
UNIGRAM_COUNTS = "unigram-counts.npy"


@dataclass(frozen=True)
class SplitInfo:
    """One side of the corpus."""

    documents: int
    tokens: int  # the end-of-text tokens among them
    text_bytes: int
    shards: list[str]


@dataclass(frozen=True)
class Manifest:
    made_of: dict[str, Any]  # what was asked for: corpus, tokenizer, held-out fraction
    fingerprint: Fingerprint  # of the corpus
    vocab_size: int
    end_of_text: int
    dtype: str
    empty_documents: int  # left out
    invalid_documents: int  # with bytes that are not UTF-8, now U+FFFD
    splits: dict[str, SplitInfo]
    files: dict[str, FileInfo]  # all but the manifest

    @property
    def digest(self) -> str:
        """A hash of the tokens of both splits and of their tokenizer, wherever they were made."""
        # Not of the tables of checksums, which follow from the tokens.
        names = sorted(name for name in self.files if not name.endswith(CHECKSUMS))
        files = [f"{name} {self.files[name].sha256}" for name in names]
        return hashlib.sha256("\n".join(files).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        json_files.write(folder / MANIFEST, dataclasses.asdict(self))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a cache; raises `UserError` if it is missing or damaged."""
    path = folder / MANIFEST
    fields = json_files.read(path, REBUILD)
    try:
        fields["files"] = infos_in(fields)
        fields["fingerprint"] = Fingerprint(**fields["fingerprint"])
        fields["splits"] = {name: SplitInfo(**info) for name, info in fields["splits"].items()}
        manifest = Manifest(**fields)
        for split in manifest.splits.values():
            if unknown := sorted(set(split.shards).difference(manifest.files)):
                raise ValueError(f"it names {unknown[0]!r}, which is not among its files")
        if manifest.dtype not in DTYPES:
            raise ValueError(f"its dtype is {manifest.dtype!r}, and not one of {', '.join(DTYPES)}")
        return manifest
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        reason = str(error) if isinstance(error, ValueError) else "it is no manifest"
        raise damaged(path, reason, REBUILD) from error
