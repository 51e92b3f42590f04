"""Which documents a corpus has, how it is recognised and how it is split."""

import argparse
import collections
import json
import os
import pydoc_data.topics
import subprocess
import sys
from pathlib import Path

import pytest

from bottleneck.config import DataConfig
from bottleneck.data import corpus as corpora
from bottleneck.data.corpus import Corpus, open_corpus, validation_draw
from bottleneck.errors import UserError


def text_corpus(*paths: Path | str, **fields) -> Corpus:
    return open_corpus(DataConfig(corpus="text", paths=tuple(map(str, paths)), **fields))


def texts_of(corpus: Corpus) -> list[str]:
    return [document.text for document in corpus.documents()]


@pytest.fixture
def library(tmp_path) -> Path:
    """A folder of small texts, hidden files and other things."""
    folder = tmp_path / "library"
    for name in ("b.txt", "a.md", "deep/er/c.py", ".git/d.txt", "deep/.e.txt", "image.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"text of {name}")
    (folder / "f.jsonl").write_text('{"text": "record 0"}\n{"text": "record 1"}\n')
    return folder


def test_stdlib_holds_the_sources_and_help_topics_of_this_python():
    documents = {d.key: d for d in open_corpus(DataConfig()).documents()}
    assert documents["argparse.py"].text == Path(argparse.__file__).read_bytes().decode()
    package = Path(collections.__file__)
    assert documents["collections/__init__.py"].text == package.read_bytes().decode()
    assert documents["help/lambda"].text == pydoc_data.topics.topics["lambda"]
    assert not any("site-packages" in key or "test" in Path(key).parts for key in documents)
    # Enough for a model of a few million parameters, and about the same on every machine.
    assert 5e6 < sum(len(d.text) for d in documents.values()) < 15e6


@pytest.mark.parametrize("is_hashed_in_full", [True, False])
def test_a_corpus_is_the_same_each_time(library, monkeypatch, is_hashed_in_full):
    monkeypatch.setattr(corpora, "_HASHED_IN_FULL", 2**26 if is_hashed_in_full else 0)
    for config in (DataConfig(), DataConfig(corpus="text", paths=(str(library),))):
        first, second = open_corpus(config), open_corpus(config)
        assert list(first.documents()) == list(second.documents())
        assert first.fingerprint == second.fingerprint and first.description == second.description


def test_a_folder_holds_its_visible_texts_at_any_depth_in_the_order_of_their_names(library):
    expected = ["text of a.md", "text of b.txt", "text of deep/er/c.py", "record 0", "record 1"]
    assert texts_of(text_corpus(library)) == expected


def test_files_and_globs_come_in_the_order_given_and_once(library, monkeypatch):
    monkeypatch.chdir(library)
    corpus = text_corpus("f.jsonl", "*.md", "**/*.py", library / "f.jsonl", "a.md")
    assert texts_of(corpus) == ["record 0", "record 1", "text of a.md", "text of deep/er/c.py"]


def test_positions_grow_to_the_size_of_the_corpus(library):
    for corpus in (text_corpus(library), open_corpus(DataConfig())):
        positions = [document.position for document in corpus.documents()]
        assert positions == sorted(positions)
        assert positions[-1] == corpus.fingerprint.bytes


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("librari", "librari does not exist; did you mean {library}?"),
        ("library/*.rst", "*.rst does not exist"),
        ("library/image.png", "image.png must end in one of .txt, .md, .py, .jsonl"),
        ("library/*.png", "*.png holds no .txt, .md, .py, .jsonl"),
        ("library/.git/none", "none does not exist"),
    ],
)
def test_a_path_without_text_is_refused_in_one_line(library, path, says):
    with pytest.raises(UserError) as refusal:
        text_corpus(library.parent / path)
    assert says.format(library=library) in str(refusal.value)
    assert "config.data.paths" in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("is_hashed_in_full", [True, False])
@pytest.mark.parametrize("change", ["edit", "rename", "add", "remove"])
def test_a_changed_corpus_has_another_fingerprint(library, monkeypatch, change, is_hashed_in_full):
    monkeypatch.setattr(corpora, "_HASHED_IN_FULL", 2**26 if is_hashed_in_full else 0)
    before = text_corpus(library).fingerprint
    file = library / "b.txt"
    if change == "edit":  # at the same length; at the same time too, where contents are compared
        time = file.stat().st_mtime + (0 if is_hashed_in_full else 5)
        file.write_text(file.read_text().upper())
        os.utime(file, (time, time))
    elif change == "rename":
        file.rename(library / "bb.txt")
    elif change == "add":
        (library / "z.txt").write_text("")
    else:
        file.unlink()
    assert text_corpus(library).fingerprint != before


def test_the_split_depends_on_the_text_alone_and_keeps_its_fraction():
    draws = [validation_draw(f"document {i}") for i in range(20_000)]
    assert draws == [validation_draw(f"document {i}") for i in range(20_000)]
    # Each count is binomial; 5 standard deviations are 1 in 2 million.
    for fraction in (0.02, 0.1, 0.5):
        expected, deviation = fraction * 20_000, (fraction * (1 - fraction) * 20_000) ** 0.5
        assert abs(sum(draw < fraction for draw in draws) - expected) < 5 * deviation


def test_the_split_is_pinned():
    # Of every cache on disk: blake2b, 8 bytes, big-endian, over 2^64; computed with b2sum -l 64.
    assert validation_draw("") == 0xE4A6A0577479B2B4 / 2**64
    assert validation_draw("naïve") == 0xBEF26892EEEB4CDC / 2**64


WRITE_A_DATA_SET = """
import sys
import numpy as np
import tensorflow_datasets as tfds

class NastyTexts(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"body": tfds.features.Text(), "label": np.int32}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {"train": self._generate_examples(600), "test": self._generate_examples(7)}

    def _generate_examples(self, n):
        for i in range(n):
            yield i, {"body": f"naïve\\x00 text {i}" if i else "", "label": i}

NastyTexts(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
"""

READ_IT = """
import json, sys
from bottleneck.config import DataConfig
from bottleneck.data.corpus import open_corpus

fields = json.loads(sys.argv[1])
corpus = open_corpus(DataConfig(corpus="tfds", text_field="body", **fields))
documents = list(corpus.documents())
assert "tensorflow" not in sys.modules
assert documents[-1].position == corpus.fingerprint.bytes
print(json.dumps([d.text for d in documents]))
"""


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tfds")
    (folder / "write.py").write_text(WRITE_A_DATA_SET)  # TFDS looks for the file of a builder
    subprocess.run([sys.executable, folder / "write.py", folder], check=True, capture_output=True)
    return folder


def test_tfds_gives_all_texts_of_a_split_without_tensorflow(tfds_dir):
    fields = {"tfds_name": "nasty_texts", "tfds_data_dir": str(tfds_dir), "tfds_split": "train"}
    command = [sys.executable, "-c", READ_IT, json.dumps(fields)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    expected = ["", *(f"naïve\x00 text {i}" for i in range(1, 600))]
    assert sorted(json.loads(output)) == sorted(expected)


def tfds_corpus(tfds_dir: Path, **fields) -> Corpus:
    defaults = {"tfds_name": "nasty_texts", "tfds_data_dir": str(tfds_dir), "text_field": "body"}
    return open_corpus(DataConfig(corpus="tfds", **(defaults | fields)))


def test_tfds_takes_part_of_a_split(tfds_dir):
    whole = texts_of(tfds_corpus(tfds_dir, tfds_split="train"))
    assert texts_of(tfds_corpus(tfds_dir, tfds_split="train[10:15]")) == whole[10:15]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tfds_name": "lm1bb"}, "tfds_name='lm1bb' is not a TFDS data set; did you mean lm1b?"),
        ({"tfds_name": "qqqqqq"}, "'qqqqqq' is not a TFDS data set; see tensorflow.org"),
        ({"tfds_name": "../x"}, "'../x'"),
        ({"tfds_name": "kaggle:texts"}, "community data sets run code"),
        ({"tfds_split": "tran"}, "tfds_split='tran': Unknown split 'tran'. Should be one of"),
        (
            {"text_field": "bodi"},
            "text_field='bodi' is not a feature of 'nasty_texts'; did you mean body?",
        ),
    ],
)
def test_a_tfds_mistake_is_refused_in_one_line(tfds_dir, fields, says):
    with pytest.raises(UserError) as refusal:
        tfds_corpus(tfds_dir, **fields)
    assert says in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_field_of_numbers_is_refused(tfds_dir):
    with pytest.raises(UserError, match="'label' is of type"):
        texts_of(tfds_corpus(tfds_dir, text_field="label"))


STREAM = """
import sys
from pathlib import Path
from bottleneck.config import DataConfig
from bottleneck.data.corpus import open_corpus

def peak():  # of this process in MB; getrusage would count the one that started it
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024

before = peak()
corpus = open_corpus(DataConfig(corpus="text", paths=(sys.argv[1],)))
characters = sum(len(document.text) for document in corpus.documents())
print(characters, peak() - before)
"""


@pytest.mark.parametrize("name", ["many.jsonl", "one.txt"])
def test_a_corpus_of_200_mb_is_read_in_little_memory(tmp_path, name):
    words = " ".join(f"word {i}" for i in range(1000))
    line = json.dumps({"text": words}) + "\n" if name.endswith(".jsonl") else words + "\n"
    n = 200_000_000 // len(line)
    with (tmp_path / name).open("w") as file:
        file.writelines(line for _ in range(n))
    command = [sys.executable, "-c", STREAM, tmp_path / name]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    characters, growth = map(float, output.split())
    assert characters == n * (len(words) + name.endswith(".txt"))
    assert growth < 30
