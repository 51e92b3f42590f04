"""Sources of text: the standard library, files, TFDS, or a language of known rank.

A corpus is a stream of documents in a fixed order, with a fingerprint that reveals any change.
The contents of a document alone decide its split, so all copies of it are on the same side.
"""

import difflib
import hashlib
import os
import platform
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bottleneck.config import DataConfig
from bottleneck.data import known_rank
from bottleneck.data.documents import SUFFIXES, Document, document, read_documents, text_of
from bottleneck.errors import UserError, suggestion
from bottleneck.storage import folders

# Folders in the standard library's that not every Python ships (Debian and slim images lack tests,
# idlelib and tkinter), that are tables (encodings), or that are not part of it (site-packages).
_LEFT_OUT = frozenset({"__pycache__", "site-packages", "dist-packages", "lib-dynload", "encodings"})
_LEFT_OUT |= {"test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "msilib"}
_LEFT_OUT |= {"distutils", "lib2to3", "pydoc_data"}

# Bytes up to which a corpus is identified by its contents. The fingerprint of a larger one uses the
# names, sizes and modification times of its files.
_HASHED_IN_FULL = 2**26

_TFDS_ROWS = 256  # records per read


@dataclass(frozen=True)
class Fingerprint:
    """Identity of a corpus, which any change of its files changes."""

    files: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Corpus:
    """A stream of documents that does not grow in memory."""

    name: str  # short, fit for a file name
    description: dict[str, Any]  # the request that names it, as plain values
    fingerprint: Fingerprint
    documents: Callable[[], Iterator[Document]]  # the same each time, empty ones included
    tokenizer: Tokenizer | None = None  # its own, if it has one


def open_corpus(config: DataConfig) -> Corpus:
    """Opens the corpus that the config names; raises `UserError` if it cannot be read."""
    openers = {"stdlib": _stdlib, "text": _text, "tfds": _tfds, "known_rank": _known_rank}
    try:
        return openers[config.corpus](config)
    except OSError as error:
        raise folders.cannot_read(error.filename or "the corpus", error) from error


def validation_draw(text: str) -> float:
    """Hashes a text to [0, 1), uniformly; below `validation_fraction` it is for validation."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _stdlib(config: DataConfig) -> Corpus:
    """Source code of the running Python's standard library, and the topics of its `help()`."""
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _LEFT_OUT]
        # _sysconfigdata* describes how this Python was compiled.
        sources = (n for n in names if n.endswith(".py") and not n.startswith("_sysconfigdata"))
        files += [Path(folder, name) for name in sources]
    files.sort()
    if not files:
        raise UserError(
            f"config.data.corpus='stdlib': {root} has no source files; use corpus='text'"
        )
    try:
        from pydoc_data.topics import topics as of_help

        topics = sorted(of_help.items())
    except ImportError:  # a minimal Python without its documentation
        topics = []

    def documents() -> Iterator[Document]:
        before = 0
        for found in _concatenated(files, field=""):
            before = found.position
            yield found._replace(key=str(Path(found.key).relative_to(root)))
        for name, text in topics:
            before += len(text.encode())
            yield document(f"help/{name}", text, before)

    entries = [(str(f.relative_to(root)), f.stat().st_size, _sha256(f)) for f in files]
    for name, text in topics:
        raw = text.encode()
        entries.append((f"help/{name}", len(raw), hashlib.sha256(raw).hexdigest().encode()))
    fingerprint = _fingerprint(entries)
    version = platform.python_version()
    # Two builds of one release may differ in patches, so each has its own tokens.
    description = {"corpus": "stdlib", "python": version, "sha256": fingerprint.sha256}
    return Corpus(f"stdlib-{version}", description, fingerprint, documents)


def _text(config: DataConfig) -> Corpus:
    given = map(folders.as_path, config.paths)
    paths = [path if folders.is_remote(path) else path.absolute() for path in given]
    files = list(dict.fromkeys(file for path in paths for file in _text_files(path)))
    sizes = [folders.size(file) for file in files]
    if sum(sizes) <= _HASHED_IN_FULL:
        marks: Iterable[bytes] = map(_sha256, files)
    else:
        marks = (b"%d" % folders.changed(file) for file in files)
    return Corpus(
        f"text-{paths[0].name.partition('.')[0]}",
        {"corpus": "text", "paths": [*map(str, paths)], "text_field": config.text_field},
        _fingerprint(zip(map(str, files), sizes, marks, strict=True)),
        lambda: _concatenated(files, config.text_field),
    )


def _text_files(path: Path) -> list[Path]:
    """Returns the files that a path, folder or glob names, sorted; at least one."""
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise UserError(f"config.data.paths: {path} must end in one of {', '.join(SUFFIXES)}")
        return [path]
    if path.is_dir():
        found = folders.visible_files(path)
    elif matches := folders.matches(path):
        found = matches
    else:
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, beside, n=1)
        advice = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise UserError(f"config.data.paths: {path} does not exist{advice}")
    named = sorted(file for file in found if file.name.endswith(SUFFIXES))
    files = [file for file in named if file.is_file()]
    for file in set(named).difference(files):
        if not file.exists():
            raise UserError(f"config.data.paths: {file} is a broken link; repair or remove it")
    if not files:
        raise UserError(f"config.data.paths: {path} holds no {', '.join(SUFFIXES)} file")
    return files


def _concatenated(files: list[Path], field: str) -> Iterator[Document]:
    before = 0
    for file in files:
        for found in read_documents(file, field):
            yield found._replace(position=before + found.position)
        try:
            before += folders.size(file)
        except OSError as error:
            raise folders.cannot_read(file, error) from error


def _fingerprint(entries: Iterable[tuple[str, int, bytes]]) -> Fingerprint:
    """Returns the fingerprint of files given as (name, bytes, hash or time)."""
    digest, files, total = hashlib.sha256(), 0, 0
    for name, size, mark in entries:
        # A name cannot contain a NUL, so different lists of files never give the same bytes.
        digest.update(b"%s\0%d\0%s\0" % (os.fsencode(name), size, mark))
        files, total = files + 1, total + size
    return Fingerprint(files, total, digest.hexdigest())


def _sha256(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest().encode()
    except OSError as error:
        raise folders.cannot_read(file, error) from error


def _tfds(config: DataConfig) -> Corpus:
    """Opens a data set of TFDS, prepared if missing; its random access needs no TensorFlow."""
    import tensorflow_datasets as tfds

    name, field = config.tfds_name, config.text_field
    try:
        if tfds.core.naming.parse_builder_name_kwargs(name)[0].namespace is not None:
            # TFDS would download its code and run it.
            raise ValueError("community data sets run code of strangers; only TFDS's own are read")
        builder = tfds.builder(name, data_dir=config.tfds_data_dir)
        if not builder.is_prepared():
            builder.download_and_prepare(file_format="array_record")
        source = builder.as_data_source(config.tfds_split)
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(name.partition("/")[0], known, n=1)
        advice = f"did you mean {near[0]}?" if near else "see tensorflow.org/datasets/catalog"
        raise UserError(
            f"config.data.tfds_name={name!r} is not a TFDS data set; {advice}"
        ) from error
    # Builders, and the servers that they download from, raise errors of any class.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"TFDS cannot open config.data.tfds_name={name!r}, "
            f"config.data.tfds_split={config.tfds_split!r}: {reason}"
        ) from error
    features = list(builder.info.features or ())
    if field not in features:
        advice = suggestion(field, features)
        raise UserError(f"config.data.text_field={field!r} is not a feature of {name!r}; {advice}")
    full_name = f"{builder.info.full_name}/{config.tfds_split}"
    files = builder.info.splits[config.tfds_split].filepaths
    status = [(file.name, file.stat()) for file in files]
    fingerprint = _fingerprint((file, s.length, b"%d" % s.mtime) for file, s in status)

    def documents() -> Iterator[Document]:
        for start in range(0, len(source), _TFDS_ROWS):
            rows = range(start, min(start + _TFDS_ROWS, len(source)))
            for row, example in zip(rows, source.__getitems__(rows), strict=True):
                key = f"{full_name}:{row}"
                position = fingerprint.bytes * (row + 1) // len(source)
                yield document(key, text_of(example[field], key, field), position)

    description = {"corpus": "tfds", "name": full_name, "text_field": field}
    return Corpus(f"tfds-{full_name}", description, fingerprint, documents)


def _known_rank(config: DataConfig) -> Corpus:
    """Draws a language from its seed; without files, nothing can change."""
    rank, n_tokens, n = config.language_rank, config.language_tokens, config.language_documents
    description = {
        "corpus": "known_rank",
        "version": known_rank.VERSION,
        "logit_std": known_rank.LOGIT_STD,
        "rank": rank,
        "tokens": n_tokens,
        "documents": n,
        "seed": config.language_seed,
    }
    language = known_rank.make_language(n_tokens, rank, config.language_seed)
    return Corpus(
        f"known-rank-{rank}",
        description,
        Fingerprint(0, known_rank.nominal_bytes(n_tokens, n), "made by this program"),
        lambda: known_rank.documents(language, n, config.language_seed),
        known_rank.tokenizer(n_tokens),
    )
