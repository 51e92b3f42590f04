"""What is read out of text files."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bottleneck.data import documents
from bottleneck.data.documents import read_documents
from bottleneck.errors import UserError

TEXTS = ["one\n", "two\x00", "", "naïve — 漢字 🙂", " \t ", "x" * 100_000, "<|endoftext|>"]
LINES = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(TEXTS)).encode()


def zstd(raw: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(raw)
    return sink.getvalue().to_pybytes()


def texts_of(path: Path, field: str = "text") -> list[str]:
    return [document.text for document in read_documents(path, field)]


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("a.jsonl", LINES),
        ("a.jsonl.gz", gzip.compress(LINES)),
        ("a.jsonl.gz", gzip.compress(LINES[:50]) + gzip.compress(LINES[50:])),
        ("a.jsonl.zst", zstd(LINES)),
        ("a.jsonl.zst", zstd(LINES[:50]) + zstd(LINES[50:])),
        ("a.jsonl", b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n\n")),
    ],
    ids=[
        "plain",
        "gzip",
        "gzip-of-two-members",
        "zstd",
        "zstd-of-two-frames",
        "bom-and-blank-lines",
    ],
)
def test_json_lines_give_their_texts_however_they_are_packed(tmp_path, name, contents):
    (tmp_path / name).write_bytes(contents)
    assert texts_of(tmp_path / name) == TEXTS


def test_parquet_gives_the_column_in_its_order(tmp_path):
    texts = [*TEXTS, None, *map(str, range(1000))]
    table = pyarrow.table({"id": range(len(texts)), "body": texts})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=300)
    assert texts_of(tmp_path / "a.parquet", "body") == [text or "" for text in texts]


def test_a_plain_file_is_one_document(tmp_path):
    (tmp_path / "a.md").write_bytes("# Ünïcode\r\n\x00".encode())
    assert texts_of(tmp_path / "a.md") == ["# Ünïcode\r\n\x00"]


def test_a_long_plain_file_is_cut_at_line_ends(tmp_path):
    lines = [f"line {i} " + "é" * (i % 300) + "\n" for i in range(10_000)]
    (tmp_path / "a.txt").write_text("".join(lines))
    found = list(read_documents(tmp_path / "a.txt", "text"))
    assert "".join(document.text for document in found) == "".join(lines)
    assert all(document.text.endswith("\n") for document in found)
    sizes = [len(document.text.encode()) for document in found]
    assert max(sizes) <= 2 * documents.PASSAGE and len(found) > sum(sizes) / documents.PASSAGE / 2
    assert [document.position for document in found][-1] == sum(sizes)


@pytest.mark.parametrize("text", ["漢" * 5000, "🙂" * 5000, "word " * 5000, "x" * 20_000])
def test_a_long_line_is_cut_between_characters(tmp_path, monkeypatch, text):
    monkeypatch.setattr(documents, "LONGEST_PLAIN_FILE", 100)
    monkeypatch.setattr(documents, "PASSAGE", 64)
    (tmp_path / "a.txt").write_text(text)
    found = list(read_documents(tmp_path / "a.txt", "text"))
    assert "".join(document.text for document in found) == text
    assert max(len(document.text.encode()) for document in found) <= 128
    assert not any(document.was_invalid for document in found)


@given(raw=st.binary(min_size=1, max_size=300))
def test_no_byte_of_a_long_file_is_lost(tmp_path_factory, raw):
    path = tmp_path_factory.mktemp("any") / "a.txt"
    path.write_bytes(raw)
    with pytest.MonkeyPatch.context() as patch, path.open("rb") as stream:
        patch.setattr(documents, "PASSAGE", 16)
        passages = list(documents._passages(stream))
    assert b"".join(passages) == raw
    assert all(0 < len(passage) <= 32 for passage in passages)


def test_invalid_utf8_is_replaced_and_marked(tmp_path):
    (tmp_path / "bytes.txt").write_bytes(b"ab\xff\xfecd")
    (tmp_path / "lines.jsonl").write_bytes(
        b'{"text": "a\xffb"}\n{"text": "\\ud800c"}\n{"text": "ok"}'
    )
    found = [
        *read_documents(tmp_path / "bytes.txt", ""),
        *read_documents(tmp_path / "lines.jsonl", "text"),
    ]
    assert [document.text for document in found] == ["ab��cd", "a�b", "�c", "ok"]
    assert [document.was_invalid for document in found] == [True, True, True, False]


def test_keys_are_distinct_and_positions_grow_to_the_size_of_the_file(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES))
    found = list(read_documents(tmp_path / "a.jsonl.gz", "text"))
    assert len({document.key for document in found}) == len(TEXTS)
    assert [document.position for document in found] == sorted(
        document.position for document in found
    )
    assert found[-1].position == (tmp_path / "a.jsonl.gz").stat().st_size


@pytest.mark.parametrize(
    ("name", "contents", "says"),
    [
        ("a.jsonl.gz", gzip.compress(LINES * 50)[:-40], "a.jsonl.gz: Truncated compressed stream"),
        ("a.jsonl.zst", zstd(LINES * 50)[:-10], "a.jsonl.zst: Truncated compressed stream"),
        ("a.jsonl.gz", b"not compressed", "a.jsonl.gz: "),
        ("a.jsonl.zst", b"not compressed", "a.jsonl.zst: "),
        ("a.parquet", b"PAR1 is not enough", "a.parquet: "),
        ("a.parquet", b"", "a.parquet: "),
        ("a.jsonl", LINES[:30], "a.jsonl:2: not a JSON object"),
        ("a.jsonl", b'{"text": "a"}\n[1]\n', "a.jsonl:2: of type list, not a JSON object"),
        (
            "a.jsonl",
            b'{"txt": "a"}',
            "a.jsonl:1: no key 'text' (config.data.text_field); did you mean txt?",
        ),
        ("a.jsonl", b"{}", "a.jsonl:1: no key 'text' (config.data.text_field); it has none"),
        ("a.jsonl", b'{"text": 3}', "a.jsonl:1: 'text' is of type int; it must be a text"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1: not a JSON object"),
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "a.jsonl:1: not a JSON object"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path, name, contents, says):
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(UserError) as refusal:
        texts_of(tmp_path / name)
    assert says in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_missing_column_is_refused_with_the_nearest_name(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"content": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(
        UserError, match=r"a.parquet: no column 'contents' .* did you mean content\?"
    ):
        texts_of(tmp_path / "a.parquet", "contents")
