"""Documents, and how they are read from text files.

A plain file (.txt, .md, .py) is a document; so is every record of a .jsonl (also .gz and .zst) or
.parquet file. Files are streamed, however large: memory holds one record of at most LONGEST_RECORD,
or one passage of a long plain file.
"""

import codecs
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from bottleneck.errors import UserError, suggestion
from bottleneck.storage.folders import cannot_read, size

PLAIN = (".txt", ".md", ".py")
JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
SUFFIXES = (*PLAIN, *JSON_LINES, ".parquet")

# A longer plain file is a whole collection: it is cut at line ends into passages, each a document.
# One document could not be split into training and validation text.
LONGEST_PLAIN_FILE = 2**20  # bytes
PASSAGE = 2**14  # bytes, about 4,000 tokens

# Bytes of a line or a text. Reading one takes a few times its size in memory. Anything longer is a
# file with the wrong suffix, or one made to exhaust memory.
LONGEST_RECORD = 2**27

_PARQUET_ROWS = 16  # per batch: a small file can repeat one long text in every row


class Document(NamedTuple):
    """A text and its source."""

    key: str  # unique in its corpus
    text: str  # valid Unicode, possibly empty
    position: int  # bytes of the corpus read so far, this document included
    was_invalid: bool = False  # True if bytes that are not UTF-8 were replaced with U+FFFD


def read_documents(path: Path, field: str) -> Iterator[Document]:
    """Yields the documents of a file in order; `field` names the text of a record.

    Raises `UserError`, with path and line, if the file cannot be read, is truncated, or lacks the
    field.
    """
    if path.suffix == ".parquet":
        reader = _read_parquet(path, field)
    elif path.name.endswith(JSON_LINES):
        reader = _read_json_lines(path, field)
    else:
        reader = _read_plain(path)
    try:
        yield from reader
    except OSError as error:  # of the system, or of pyarrow for a damaged compressed stream
        raise cannot_read(path, error) from error


def document(key: str, raw: bytes | str, position: int) -> Document:
    """Returns the document with this text, made valid: JSON can hold half a surrogate pair."""
    try:
        if isinstance(raw, bytes):
            return Document(key, raw.decode(), position)
        raw.encode()
        return Document(key, raw, position)
    except UnicodeError:
        if isinstance(raw, str):
            raw = raw.encode("utf-16", "surrogatepass")
            return Document(key, raw.decode("utf-16", "replace"), position, was_invalid=True)
        return Document(key, raw.decode(errors="replace"), position, was_invalid=True)


def _read_plain(path: Path) -> Iterator[Document]:
    with path.open("rb") as stream:
        if size(path) <= LONGEST_PLAIN_FILE:
            raw = stream.read()
            yield document(str(path), raw, len(raw))
            return
        position = 0
        for raw in _passages(stream):
            yield document(f"{path}:{position}", raw, position := position + len(raw))


def _passages(stream: IO[bytes]) -> Iterator[bytes]:
    """Yields pieces of the stream that end with a line if possible, or a word, or a character."""
    rest = b""
    while block := stream.read(PASSAGE):
        block = rest + block
        cut = block.rfind(b"\n") + 1 or block.rfind(b" ") + 1 or _start_of_last_character(block)
        rest = block[cut:]
        yield block[:cut]
    if rest:
        yield rest


def _start_of_last_character(block: bytes) -> int:
    # A UTF-8 character has at most 4 bytes, all but the first of the form 10xxxxxx.
    last = range(len(block) - 1, max(len(block) - 5, 0), -1)
    return next((i for i in last if block[i] & 0b1100_0000 != 0b1000_0000), len(block))


def _read_json_lines(path: Path, field: str) -> Iterator[Document]:
    with path.open("rb") as file:
        stream = _decompressed(file, path)
        lines = iter(lambda: stream.readline(LONGEST_RECORD + 1), b"")
        for number, line in enumerate(lines, start=1):
            where = f"{path}:{number}"
            _check_length(line, where)
            found = document(where, line.removeprefix(codecs.BOM_UTF8), file.tell())
            if not found.text.strip():
                continue
            try:
                record = json.loads(found.text)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}: not a JSON object: {error}") from error
            if not isinstance(record, dict):
                raise UserError(f"{where}: of type {type(record).__name__}, not a JSON object")
            if field not in record:
                raise UserError(f"{where}: {_missing('key', field, list(record))}")
            text = document(where, text_of(record[field], where, field), found.position)
            yield text._replace(was_invalid=found.was_invalid or text.was_invalid)


def _decompressed(file: IO[bytes], path: Path) -> IO[bytes]:
    if path.suffix not in (".gz", ".zst"):
        return file
    if not size(path):  # the codecs would read an empty stream
        raise UserError(f"cannot read {path}: it has no bytes; even an empty archive has some")
    import pyarrow

    # Unlike the zstandard package, this raises on a truncated file.
    codec = "gzip" if path.suffix == ".gz" else "zstd"
    stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), codec)
    return io.BufferedReader(stream, buffer_size=2**20)


def _read_parquet(path: Path, field: str) -> Iterator[Document]:
    import pyarrow.parquet

    n_bytes = size(path)
    try:
        with path.open("rb") as file, pyarrow.parquet.ParquetFile(file) as table:
            if field not in table.schema_arrow.names:
                raise UserError(f"{path}: {_missing('column', field, table.schema_arrow.names)}")
            kind = table.schema_arrow.field(table.schema_arrow.names.index(field)).type
            as_bytes = _type_of_bytes(kind, where=f"{path}: {field!r}")
            row = 0
            for batch in table.iter_batches(batch_size=_PARQUET_ROWS, columns=[field]):
                # As bytes: nothing has checked that a string is UTF-8.
                for value in batch.column(0).cast(as_bytes).to_pylist():
                    where = f"{path}:{row}"
                    row += 1
                    position = n_bytes * row // table.metadata.num_rows
                    yield document(where, text_of(value, where, field), position)
    except pyarrow.ArrowException as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"cannot read {path}: {reason}") from error


def _type_of_bytes(kind: Any, where: str) -> Any:
    """Returns the type to cast a column of texts to; raises `UserError` for another column."""
    import pyarrow
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_large_string(kind) or types.is_large_binary(kind):
        return pyarrow.large_binary()
    names = ("null", "string", "string_view", "binary", "binary_view", "fixed_size_binary")
    if not any(getattr(types, f"is_{name}")(kind) for name in names):
        raise UserError(f"{where} is a column of type {kind}; it must hold texts")
    return pyarrow.binary()


def text_of(value: Any, where: str, field: str) -> bytes | str:
    """Returns the value of a record's text field; null is an empty text, a number an error."""
    if value is None:
        return ""
    if not isinstance(value, (str, bytes)):
        raise UserError(f"{where}: {field!r} is of type {type(value).__name__}; it must be a text")
    _check_length(value, where)
    return value


def _check_length(record: bytes | str, where: str) -> None:
    if len(record) > LONGEST_RECORD:
        raise UserError(f"{where}: longer than the limit of {LONGEST_RECORD:,} bytes")


def _missing(kind: str, field: str, known: list[str]) -> str:
    advice = suggestion(field, known) if known else "it has none"
    return f"no {kind} {field!r} (config.data.text_field); {advice}"
