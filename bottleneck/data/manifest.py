"""The manifest of a token cache: its contents, its source, and the checksums of its files."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bottleneck.data.corpus import Fingerprint
from bottleneck.data.shards import DTYPES, REBUILD
from bottleneck.storage import json_files
from bottleneck.storage.checksums import FileInfo, damaged, infos_in

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
UNIGRAM_COUNTS = "unigram-counts.npy"


@dataclass(frozen=True)
class SplitInfo:
    """Counts of one split."""

    documents: int
    tokens: int  # end-of-text tokens included
    text_bytes: int
    shards: list[str]


@dataclass(frozen=True)
class Manifest:
    """Facts of a token cache."""

    made_of: dict[str, Any]  # the request: corpus, tokenizer, validation fraction
    fingerprint: Fingerprint  # of the corpus
    vocab_size: int
    end_of_text: int
    dtype: str
    empty_documents: int  # left out
    invalid_documents: int  # with bytes that are not UTF-8, now U+FFFD
    splits: dict[str, SplitInfo]
    files: dict[str, FileInfo]  # all except the manifest

    def write(self, folder: Path) -> None:
        """Writes the manifest into a folder that has no name yet; raises `OSError`."""
        record = json_files.dumps(dataclasses.asdict(self), indent=2)
        (folder / MANIFEST).write_text(record + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of a cache; raises `UserError` if it is missing or damaged."""
    path = folder / MANIFEST
    fields = json_files.read(path, REBUILD)
    try:
        fields["files"] = infos_in(fields)
        fields["fingerprint"] = Fingerprint(**fields["fingerprint"])
        fields["splits"] = {name: SplitInfo(**info) for name, info in fields["splits"].items()}
        manifest = Manifest(**fields)
        for split in manifest.splits.values():
            if unknown := sorted(set(split.shards).difference(manifest.files)):
                raise ValueError(f"it names the shard {unknown[0]!r}, which its files lack")
        if manifest.dtype not in DTYPES:
            raise ValueError(f"its dtype {manifest.dtype!r} must be one of {', '.join(DTYPES)}")
        return manifest
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        reason = str(error) if isinstance(error, ValueError) else "it is not a manifest"
        raise damaged(path, reason, REBUILD) from error
