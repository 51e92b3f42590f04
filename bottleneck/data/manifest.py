"""The manifest of a token cache: what is in it, what it was made of, and what its files must be."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bottleneck.data.corpus import Fingerprint
from bottleneck.data.shards import CHECKSUMS, DTYPES
from bottleneck.storage.checksums import FileInfo, cannot_read, damaged
from bottleneck.storage.folders import is_inside

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
        fields = dataclasses.asdict(self)
        fields["sha256"] = _digest_of(fields)
        (folder / MANIFEST).write_text(json.dumps(fields, indent=2) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a cache; raises `UserError` where it is missing or damaged."""
    path = folder / MANIFEST
    try:
        fields = json.loads(path.read_text())
        if fields.pop("sha256") != _digest_of(fields):
            raise ValueError("its contents do not match its own sha256")
        fields["fingerprint"] = Fingerprint(**fields["fingerprint"])
        fields["splits"] = {name: SplitInfo(**info) for name, info in fields["splits"].items()}
        fields["files"] = {name: FileInfo(**info) for name, info in fields["files"].items()}
        manifest = Manifest(**fields)
        # A cache may come from a stranger, and a sha256 of a manifest is soon made.
        names = [*manifest.files, *(n for split in manifest.splits.values() for n in split.shards)]
        if outside := sorted(name for name in names if not is_inside(name)):
            raise ValueError(f"it names {outside[0]!r}, which is not in its folder")
        if manifest.dtype not in DTYPES:
            raise ValueError(f"its dtype is {manifest.dtype!r}, and not one of {', '.join(DTYPES)}")
        return manifest
    except OSError as error:
        raise cannot_read(path, error) from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "it is no manifest"
        raise damaged(path, reason) from error


def _digest_of(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
