"""Corpora that nobody would write on purpose give their texts, or one line that says why not."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bottleneck.config import DataConfig
from bottleneck.data import documents
from bottleneck.data.documents import read_documents
from bottleneck.data.tokens import TokenCache, prepare
from bottleneck.errors import UserError


def config_of(*paths: Path | str, cache_dir: Path, **fields: Any) -> DataConfig:
    defaults = {
        "tokenizer_vocab_size": 260,
        "validation_fraction": 0.0,
        "cache_dir": str(cache_dir),
    }
    return DataConfig(corpus="text", paths=tuple(map(str, paths)), **(defaults | fields))


def texts_in(cache: TokenCache) -> list[str]:
    """The documents of the training split, decoded."""
    text = cache.tokenizer().decode(cache.tokens("train")[:].tolist(), skip_special_tokens=False)
    *texts, rest = text.split("<|endoftext|>")
    assert rest == ""
    return texts


def prepared(config: DataConfig) -> list[str] | str:
    """The texts of the cache that is made, or the message of the refusal, which leaves nothing."""
    try:
        return texts_in(prepare(config))
    except UserError as refusal:
        assert len(str(refusal).splitlines()) == 1
        cache_dir = Path(config.cache_dir)
        # A lock stays, so that no two processes can hold one of the same name.
        left = [p.name for p in cache_dir.iterdir()] if cache_dir.exists() else []
        assert [name for name in left if not name.endswith(".lock")] == []
        return str(refusal)


def zstd(raw: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(raw)
    return sink.getvalue().to_pybytes()


def parquet(**columns: Any) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue().to_pybytes()


TEXTS = ["one text", "naïve 漢字", "a third\n" * 20]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
GOOD = {
    "a.txt": "\n".join(TEXTS).encode(),
    "a.jsonl": LINES,
    "a.jsonl.gz": gzip.compress(LINES),
    "a.jsonl.zst": zstd(LINES),
    "a.parquet": parquet(text=TEXTS),
}


@pytest.mark.parametrize("name", sorted(GOOD))
def test_the_files_that_are_broken_below_are_right(tmp_path, name):
    (tmp_path / name).write_bytes(GOOD[name])
    found = prepared(config_of(tmp_path / name, cache_dir=tmp_path / "cache"))
    assert found == (["\n".join(TEXTS)] if name == "a.txt" else TEXTS)


bits = st.lists(st.integers(0, 2**16), min_size=1, max_size=4)


@given(name=st.sampled_from(sorted(GOOD)), kept=st.none() | st.integers(0, 2000), flips=bits)
def test_a_broken_file_is_refused_in_one_line_or_read(tmp_path_factory, name, kept, flips):
    folder = tmp_path_factory.mktemp("broken")
    contents = bytearray(GOOD[name][:kept])
    for bit in flips if kept is None else []:
        contents[bit // 8 % len(contents)] ^= 1 << bit % 8
    (folder / name).write_bytes(contents)
    found = prepared(config_of(folder / name, cache_dir=folder / "cache"))
    if isinstance(found, str):
        assert name in found or "no text" in found
    elif kept is not None and name != "a.txt":  # whole lines of plain JSON, or all there was
        assert found == TEXTS[: len(found)] and (len(found) == 3 or name == "a.jsonl")


@given(name=st.sampled_from(documents.SUFFIXES), raw=st.binary(max_size=200))
@example(".jsonl", b"\xef\xbb\xbf")
@example(".jsonl.gz", b"")
@example(".jsonl.zst", b"")
def test_any_bytes_under_any_name_are_read_or_refused(tmp_path_factory, name, raw):
    folder = tmp_path_factory.mktemp("any")
    (folder / f"a{name}").write_bytes(raw)
    found = prepared(config_of(folder / f"a{name}", cache_dir=folder / "cache"))
    if name in documents.PLAIN and raw:
        assert found == [raw.decode(errors="replace")]


@given(first=st.sampled_from(sorted(GOOD)), second=st.sampled_from(sorted(GOOD)))
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path_factory, first, second):
    folder = tmp_path_factory.mktemp("other")
    (folder / first).write_bytes(GOOD[second])
    found = prepared(config_of(folder / first, cache_dir=folder / "cache"))
    assert (first == second or first == "a.txt") == isinstance(found, list)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
records = st.dictionaries(st.sampled_from(["text", "texts", "Text", ""]), values) | values


@given(rows=st.lists(records, min_size=1, max_size=4), ascii_only=st.booleans())
@example([{"text": None}, {"text": "\ud800"}], True)
@example([{"text": 3}], True)
@example([["text"]], True)
def test_any_json_lines_are_read_or_refused(tmp_path_factory, rows, ascii_only):
    folder = tmp_path_factory.mktemp("rows")
    lines = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
    (folder / "a.jsonl").write_bytes(lines.encode(errors="surrogatepass"))
    found = prepared(config_of(folder / "a.jsonl", cache_dir=folder / "cache"))
    texts = [row.get("text", 0) if isinstance(row, dict) else 0 for row in rows]
    if all(text is None or isinstance(text, str) for text in texts):
        kept = [text for text in texts if text]
        if not any("\ud800" <= c <= "\udfff" for text in kept for c in text):
            assert found == (kept or "config.data: the corpus holds no text")
    else:
        assert isinstance(found, str) and "a.jsonl:" in found


def invalid_strings() -> pyarrow.Array:
    ends = pyarrow.py_buffer(bytes([0, 0, 0, 0, 2, 0, 0, 0]))
    return pyarrow.Array.from_buffers(
        pyarrow.string(), 1, [None, ends, pyarrow.py_buffer(b"a\xff")]
    )


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pyarrow.array(["a", None, ""]), ["a"]),
        (pyarrow.array(["a"], pyarrow.large_string()), ["a"]),
        (pyarrow.array(["a"], pyarrow.string_view()), ["a"]),
        (pyarrow.array([b"a\xff"]), ["a\ufffd"]),
        (pyarrow.array([b"ab"], pyarrow.binary(2)), ["ab"]),
        (pyarrow.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        (invalid_strings(), ["a\ufffd"]),
        (pyarrow.nulls(3), "config.data: the corpus holds no text"),
        (pyarrow.array([3]), "'text' is a column of type int64; it must hold texts"),
        (pyarrow.array([["a"]]), "is a column of type list<element: string>; it must hold texts"),
        (pyarrow.array([2**30], pyarrow.date32()), "'text' is a column of type date32[day]; it"),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pyarrow.Array) else "",
)
def test_a_column_of_texts_of_any_type_is_read_and_another_is_refused(tmp_path, column, expected):
    (tmp_path / "a.parquet").write_bytes(parquet(text=column))
    found = prepared(config_of(tmp_path / "a.parquet", cache_dir=tmp_path / "cache"))
    assert found == expected if isinstance(expected, list) else expected in found


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["a"], ["a"]),
        (["", "\x00", ""], ["\x00"]),
        (["x" * 10_000_000], ["x" * 10_000_000]),
        (["\ufeffa", "\r\n", "<|endoftex|>"], ["\ufeffa", "\r\n", "<|endoftex|>"]),
    ],
    ids=["one token", "NUL", "10 MB in a line", "BOM"],
)
def test_odd_texts_survive(tmp_path, texts, expected):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "a.jsonl").write_text(lines)
    config = config_of(tmp_path / "a.jsonl", cache_dir=tmp_path / "cache")
    assert prepared(config) == expected


def test_thousands_of_tiny_files_are_as_many_texts(tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(5_000):
        (folder / f"{i:05d}.txt").write_text(f"{i}")
    found = prepared(config_of(folder, cache_dir=tmp_path / "cache"))
    assert found == [f"{i}" for i in range(5_000)]


odd_names = st.text(min_size=1, max_size=20).filter(lambda name: not set("/\0") & set(name))


@given(name=odd_names, folder_name=odd_names.filter(lambda name: name not in (".", "..")))
@example("\udcff", "x\ny")
@example("[a]*?", "**")
def test_any_name_will_do(tmp_path_factory, name, folder_name):
    folder = tmp_path_factory.mktemp("names")
    try:
        file = folder / folder_name.strip(".") / f"a{name}.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_text("a text")
        (file.parent / f"a{name}.jsonl").write_text("no json")
    except (OSError, UnicodeEncodeError):  # no name for this file system
        return
    config = config_of(file, cache_dir=folder / folder_name.strip(".") / "cache")
    assert prepared(config) == ["a text"]
    assert "not a JSON object" in prepared(
        config_of(file.with_suffix(".jsonl"), cache_dir=folder / "other")
    )


def link_to_nothing(path: Path) -> None:
    path.symlink_to(path.parent / "nothing")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def link_to_what_fails(path: Path) -> None:
    path.symlink_to("/proc/self/mem")  # a file; reading it is an error, for root too


NO_FILES: list[tuple[Callable[[Path], None], str]] = [
    (link_to_nothing, "a.txt is a broken link"),
    (link_to_itself, "a.txt is a broken link"),
    (link_to_what_fails, "a.txt: Input/output error"),
]


@pytest.mark.parametrize(("make", "says"), NO_FILES)
@pytest.mark.parametrize("given", ["file", "folder", "glob"])
def test_a_link_that_leads_nowhere_is_refused_rather_than_left_out(tmp_path, make, says, given):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "b.txt").write_text("a text")
    make(folder / "a.txt")
    path = {"file": folder / "a.txt", "folder": folder, "glob": folder / "*"}[given]
    found = prepared(config_of(path, cache_dir=tmp_path / "cache"))
    assert isinstance(found, str) and says in found and str(folder) in found


def test_folders_with_the_names_of_files_are_folders(tmp_path):
    (tmp_path / "corpus" / "a.txt").mkdir(parents=True)
    (tmp_path / "corpus" / "a.txt" / "b.txt").write_text("a text")
    (tmp_path / "corpus" / "circle").symlink_to(tmp_path / "corpus")
    for path in (tmp_path / "corpus", tmp_path / "corpus" / "a.txt"):
        assert prepared(config_of(path, cache_dir=tmp_path / "cache")) == ["a text"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("a text")
    (tmp_path / "a.txt").chmod(0)
    found = prepared(config_of(tmp_path / "a.txt", cache_dir=tmp_path / "cache"))
    assert found == f"cannot read {tmp_path}/a.txt: Permission denied"


def test_a_file_that_goes_away_while_it_is_read_is_what_is_named(tmp_path, monkeypatch):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("a text")
    config = config_of(tmp_path / "a.txt", tmp_path / "b.txt", cache_dir=tmp_path / "cache")

    def reading(path: Path, field: str):
        yield from read_documents(path, field)
        path.unlink()

    monkeypatch.setattr("bottleneck.data.corpus.read_documents", reading)
    assert prepared(config) == f"cannot read {tmp_path}/a.txt: No such file or directory"


READ = """
import sys
from pathlib import Path
from bottleneck.data import documents
from bottleneck.errors import UserError
import pyarrow.parquet

def peak():
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024

before = peak()
try:
    print(sum(len(found.text) for found in documents.read_documents(Path(sys.argv[1]), "text")))
except UserError as error:
    print(error)
print(peak() - before)
"""


def read_in_process(path: Path) -> tuple[str, float]:
    """What reading a file gives, and by how many MB its memory grew."""
    command = [sys.executable, "-W", "ignore", "-c", READ, path]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found, growth = output.splitlines()
    return found, float(growth)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_an_archive_that_unpacks_to_gigabytes_in_one_line_is_refused_in_bounded_memory(
    tmp_path, name
):
    once = b"a" * 2**24  # packed once, and repeated as members of the archive
    member = (gzip.compress if name.endswith(".gz") else zstd)(once)
    (tmp_path / name).write_bytes(member * 128)  # 2 GiB
    assert (tmp_path / name).stat().st_size < 4e6
    found, growth = read_in_process(tmp_path / name)
    assert found == f"{tmp_path / name}:1: longer than the limit of 134,217,728 bytes"
    assert growth < 400  # the line in the pieces that it was read in, and joined


def test_a_column_of_copies_of_one_text_is_read_in_little_memory(tmp_path):
    text = "words " * 200_000
    index = pyarrow.array([0] * 500, pyarrow.int32())
    table = pyarrow.table(
        {"text": pyarrow.DictionaryArray.from_arrays(index, pyarrow.array([text]))}
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 1e6
    found, growth = read_in_process(tmp_path / "a.parquet")
    assert int(found) == 500 * len(text)  # 600 MB
    assert growth < 200
