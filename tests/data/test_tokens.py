"""The token cache: what it holds, when it is made, when it is refused."""

import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from processes import await_moment
from tokenizers import Tokenizer, models, pre_tokenizers

from bottleneck.config import DataConfig
from bottleneck.data import cache_writer, shards
from bottleneck.data.corpus import open_corpus, validation_draw
from bottleneck.data.tokens import TokenCache, open_cache, prepare
from bottleneck.errors import UserError

WORDS = ["the", "of", "and", "to", "in", "is", "was", "he", "for", "it", "with", "as", "his"]


def write_corpus(folder: Path, n_documents: int = 200, n_words: int = 60, seed: int = 0) -> Path:
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(WORDS, k=n_words)) + f" {i}." for i in range(n_documents)]
    return write_texts(folder, texts)


def write_texts(folder: Path, texts: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def config_of(path: Path, **fields) -> DataConfig:
    defaults = {
        "tokenizer_vocab_size": 300,
        "validation_fraction": 0.1,
        "cache_dir": str(path.parent / "cache"),
    }
    return DataConfig(corpus="text", paths=(str(path),), **(defaults | fields))


@pytest.fixture
def config(tmp_path) -> DataConfig:
    return config_of(write_corpus(tmp_path))


def texts_in(cache: TokenCache, split: str) -> list[str]:
    """The documents of a split, decoded, in their order."""
    tokens = cache.tokens(split)[:].astype(int)
    ends = np.flatnonzero(tokens == cache.end_of_text)
    assert len(ends) == 0 or ends[-1] == len(tokens) - 1
    documents = np.split(tokens, ends + 1)[:-1]
    tokenizer = cache.tokenizer()
    return [tokenizer.decode(d[:-1].tolist(), skip_special_tokens=False) for d in documents]


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_cache_decodes_to_the_documents_of_each_split(config):
    cache = prepare(config)
    expected = collections.defaultdict(list)
    for document in open_corpus(config).documents():
        split = "validation" if validation_draw(document.text) < 0.1 else "train"
        expected[split].append(document.text)
    assert len(expected["validation"]) > 5
    for split in ("train", "validation"):
        assert texts_in(cache, split) == expected[split]


nasty = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["", "\x00", "a", "<|endoftext|>", "\n", "x" * 7_000, "\ud800", "漢字 🙂"]),
)


@given(texts=st.lists(nasty, max_size=12, unique=True))
def test_any_documents_survive(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("any")
    config = config_of(
        write_texts(folder, [*texts, "there is always one"]), validation_fraction=0.0
    )
    cache = prepare(config)
    expected = [text.replace("\ud800", "\ufffd") for text in texts if text]
    assert texts_in(cache, "train") == [*expected, "there is always one"]
    assert cache.manifest.empty_documents == ("" in texts)
    assert cache.manifest.invalid_documents == ("\ud800" in texts)
    assert cache.n_tokens("validation") == len(cache.tokens("validation")) == 0


def test_the_manifest_counts_what_is_there(config):
    cache = prepare(config)
    for split in ("train", "validation"):
        info, texts = cache.manifest.splits[split], texts_in(cache, split)
        assert (info.documents, info.tokens) == (len(texts), len(cache.tokens(split)))
        assert info.text_bytes == sum(len(text.encode()) for text in texts)
        assert cache.n_tokens(split) == info.tokens
    assert cache.vocab_size == 300 and cache.manifest.dtype == "<u2"
    train = cache.manifest.splits["train"]
    assert cache.bytes_per_token == train.text_bytes / train.tokens


def test_the_unigram_entropy_is_that_of_the_training_tokens(config):
    cache = prepare(config)
    counts = collections.Counter(cache.tokens("train")[:].tolist())
    np.testing.assert_array_equal(cache.unigram_counts(), [counts[i] for i in range(300)])
    # float64 sums of 300 terms: some 1e-14 relative.
    expected = scipy.stats.entropy(list(counts.values()))
    assert cache.unigram_entropy == pytest.approx(expected, rel=1e-12)


def test_the_tokenizer_learns_from_training_documents_alone(tmp_path):
    # "zqzq" stands in held-out documents only, "abab" in training documents only.
    texts = [f"zqzq {i}" for i in range(200) if validation_draw(f"zqzq {i}") < 0.5]
    texts += [f"abab {i}" for i in range(200) if validation_draw(f"abab {i}") >= 0.5]
    cache = prepare(config_of(write_texts(tmp_path, texts), validation_fraction=0.5))
    vocabulary = cache.tokenizer().get_vocab()
    assert "abab" in vocabulary and "zq" not in vocabulary


def test_a_large_vocabulary_is_kept_in_four_bytes(tmp_path):
    vocabulary = {f"w{i}": i for i in range(70_000)} | {"<eos>": 70_000}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    path = write_texts(tmp_path, ["w69999 w1 w65536", "w0"])
    cache = prepare(
        config_of(path, tokenizer=str(tmp_path / "tokenizer.json"), validation_fraction=0.0)
    )
    assert cache.vocab_size == 70_001 and cache.end_of_text == 70_000
    assert cache.tokens("train")[:].tolist() == [69_999, 1, 65_536, 70_000, 0, 70_000]
    assert cache.tokens("train")[:].dtype == np.uint32


def test_a_second_run_finds_the_cache_and_writes_nothing(config, capsys):
    first = prepare(config)
    assert f"tokens: making {first.path}" in capsys.readouterr().err
    before = {path: path.stat().st_mtime_ns for path in first.path.rglob("*")}
    second = prepare(config)
    expected = (
        f"tokens: found {first.path}, {first.n_tokens('train'):,} for training, "
        f"{first.n_tokens('validation'):,} for validation\n"
    )
    assert capsys.readouterr().err == expected
    assert second == first
    assert before == {path: path.stat().st_mtime_ns for path in first.path.rglob("*")}


def test_the_cache_does_not_depend_on_how_it_is_worked_through(config, tmp_path, monkeypatch):
    whole = prepare(config)
    monkeypatch.setattr(cache_writer, "_BATCH_CHARACTERS", 50)
    monkeypatch.setattr(cache_writer, "_COUNTED_TOKENS", 13)
    monkeypatch.setattr(shards, "SHARD_TOKENS", 1000)
    parts = prepare(config_of(Path(config.paths[0]), cache_dir=str(tmp_path / "other")))
    assert len(parts.manifest.splits["train"].shards) > 3
    for split in ("train", "validation"):
        np.testing.assert_array_equal(parts.tokens(split)[:], whole.tokens(split)[:])
    np.testing.assert_array_equal(parts.unigram_counts(), whole.unigram_counts())


def test_the_same_corpus_elsewhere_has_the_same_digest(config, tmp_path):
    cache = prepare(config)
    shutil.copytree(Path(config.paths[0]).parent, tmp_path / "copy")
    copy = prepare(config_of(tmp_path / "copy" / "corpus.jsonl"))
    assert copy.path != cache.path and copy.digest == cache.digest
    other = prepare(config_of(write_corpus(tmp_path / "different", seed=1)))
    assert other.digest != cache.digest


def test_a_digest_is_of_the_tokens_and_not_of_their_checksums(config, monkeypatch):
    digest = prepare(config).digest
    monkeypatch.setattr(shards, "BLOCK_BYTES", 64)
    assert prepare(config, rebuild=True).digest == digest


@pytest.mark.parametrize(
    "fields", [{"validation_fraction": 0.2}, {"tokenizer_vocab_size": 310}, {"tokenizer": "given"}]
)
def test_whatever_changes_the_tokens_changes_the_folder(config, tmp_path, fields):
    first = prepare(config)
    if "tokenizer" in fields:
        fields = {"tokenizer": str(tmp_path / "given.json")}
        shutil.copy(first.path / "tokenizer.json", fields["tokenizer"])
    assert prepare(config_of(Path(config.paths[0]), **fields)).path != first.path


# The same program in another process, which may be killed.
PREPARE = """
import json, sys
from bottleneck.config import DataConfig
from bottleneck.data.tokens import prepare
from bottleneck.errors import UserError

fields = json.loads(sys.argv[1])
try:
    prepare(DataConfig(**fields))
except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""


def start_prepare(config: DataConfig, before: str = "") -> subprocess.Popen:
    fields = {
        name: getattr(config, name)
        for name in ("corpus", "paths", "tokenizer_vocab_size", "validation_fraction", "cache_dir")
    }
    command = [sys.executable, "-c", before + PREPARE, json.dumps(fields)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_processes_that_start_at_once_make_one_cache(tmp_path):
    config = config_of(write_corpus(tmp_path, n_documents=1000))
    processes = [start_prepare(config) for _ in range(3)]
    messages = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert "".join(messages).count("tokens: making") == 1
    (folder,) = [path for path in Path(config.cache_dir).iterdir() if path.is_dir()]
    open_cache(folder).verify()


def has_begun(cache_dir):
    """Whether tokens are being written."""
    try:
        return any(cache_dir.glob(".*.unfinished/*.bin"))
    except FileNotFoundError:  # the folder went between glob's two looks at it
        return False


SLOWLY = "from bottleneck.data import cache_writer as w; w._BATCH_CHARACTERS = 500\n"


def test_of_two_processes_the_one_that_waits_takes_over_when_the_other_is_killed(tmp_path):
    config = config_of(write_corpus(tmp_path, n_documents=2000))
    reference = prepare(config_of(Path(config.paths[0]), cache_dir=str(tmp_path / "reference")))
    first = start_prepare(config, before=SLOWLY)
    await_moment(lambda: has_begun(Path(config.cache_dir)), first)
    second = start_prepare(config)
    first.kill()
    first.communicate()
    _, errors = second.communicate()
    assert second.returncode == 0, errors
    found = Path(config.cache_dir) / reference.path.name
    assert contents_of(found) == contents_of(reference.path)


def test_a_killed_build_leaves_nothing_under_the_name_and_is_made_good(tmp_path):
    config = config_of(write_corpus(tmp_path, n_documents=2000))
    reference = prepare(config_of(Path(config.paths[0]), cache_dir=str(tmp_path / "reference")))
    cache_dir = Path(config.cache_dir)
    final = cache_dir / reference.path.name
    for seconds in (0, 0.02, 0.04):
        process = start_prepare(config, before=SLOWLY)
        await_moment(lambda: has_begun(cache_dir), process)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL and not final.exists()
        for shard in cache_dir.glob(".*.unfinished/*.bin"):  # for the next round to wait for
            shard.unlink()
    rebuilt = prepare(config)
    assert rebuilt.path == final
    assert contents_of(rebuilt.path) == contents_of(reference.path)
    assert [path.name for path in cache_dir.iterdir() if path.is_dir()] == [final.name]


def test_a_corpus_that_fails_half_way_leaves_nothing(tmp_path):
    path = write_corpus(tmp_path)
    path.write_text(path.read_text() + "not json\n")
    config = config_of(path)
    with pytest.raises(UserError, match=r"corpus.jsonl:201: not a JSON object"):
        prepare(config)
    assert [p.name for p in Path(config.cache_dir).iterdir() if p.is_dir()] == []


def test_a_disk_that_is_full_is_named_and_nothing_is_left(tmp_path):
    config = config_of(write_corpus(tmp_path, n_documents=500))
    # A limit on the size of files stands in for a full disk: writing fails in the same place.
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
    process = start_prepare(config, before=limit)
    message = process.communicate()[1].splitlines()[-1]
    assert process.returncode == 2
    assert message.startswith(f"cannot write {config.cache_dir}/text-corpus-bpe300-")
    assert "File too large" in message and "bytes free" in message
    assert [p.name for p in Path(config.cache_dir).iterdir() if p.is_dir()] == []


def test_a_cache_dir_that_cannot_be_one_is_refused(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*/file/.* must be a writable folder"):
        prepare(config_of(Path(config.paths[0]), cache_dir=str(tmp_path / "file")))


@pytest.mark.parametrize("name", ["train-00000.bin", "validation-00000.bin"])
@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_a_flipped_bit_is_found_by_verify(config, name, place):
    cache = prepare(config)
    cache.verify()
    contents = bytearray((cache.path / name).read_bytes())
    contents[int(place * (len(contents) - 1))] ^= 1
    (cache.path / name).write_bytes(contents)
    with pytest.raises(UserError, match=f"{name} is damaged: its sha256 .* prepare --rebuild"):
        open_cache(cache.path).verify()


def test_a_flipped_bit_of_the_manifest_is_found_at_opening(config):
    path = prepare(config).path / "manifest.json"
    contents = path.read_bytes()
    for place in range(0, len(contents) - 1, len(contents) // 40):
        flipped = bytearray(contents)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        try:
            is_same = json.loads(flipped) == json.loads(contents)  # white space between fields
        except ValueError:
            is_same = False
        if not is_same:
            with pytest.raises(UserError, match=r"manifest.json is damaged: .* prepare --rebuild"):
                prepare(config)


@pytest.mark.parametrize(
    "name", ["train-00000.bin", "validation-00000.bin", "tokenizer.json", "unigram-counts.npy"]
)
@pytest.mark.parametrize("damage", ["cut short", "longer", "missing"])
def test_a_file_of_another_size_is_refused_at_opening(config, name, damage):
    path = prepare(config).path / name
    if damage == "missing":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size + (1 if damage == "longer" else -1))
    with pytest.raises(
        UserError, match=rf"{name} is damaged: it (has .* bytes|is missing).* --rebuild"
    ):
        prepare(config)


def test_a_cache_without_manifest_is_refused(config):
    (prepare(config).path / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest.json: No such file .* prepare --rebuild"):
        prepare(config)


def test_a_damaged_cache_is_mended_by_rebuilding(config):
    cache = prepare(config)
    whole = contents_of(cache.path)
    os.truncate(cache.path / "train-00000.bin", 5)
    tokens = prepare(config, rebuild=True)
    assert contents_of(tokens.path) == whole
    assert [p.name for p in Path(config.cache_dir).iterdir() if p.is_dir()] == [cache.path.name]


def test_who_reads_a_cache_goes_on_while_it_is_rebuilt(config):
    tokens = prepare(config).tokens("train")
    before = tokens[:]
    prepare(config, rebuild=True)
    np.testing.assert_array_equal(tokens[:], before)


def test_a_changed_corpus_is_refused_until_it_is_rebuilt(config):
    prepare(config)
    path = Path(config.paths[0])
    path.write_text(path.read_text() + '{"text": "one more"}\n')
    with pytest.raises(UserError, match=r"had 1 files of .* bytes, now 1 of .* prepare --rebuild"):
        prepare(config)
    cache = prepare(config, rebuild=True)
    assert "one more" in texts_in(cache, "train") + texts_in(cache, "validation")
    path.write_text(path.read_text().replace("one more", "one less"))
    with pytest.raises(UserError, match="the contents, name or time of a file"):
        prepare(config)


def test_an_empty_corpus_is_refused(tmp_path):
    with pytest.raises(UserError, match="the corpus holds no text"):
        prepare(config_of(write_texts(tmp_path, ["", ""])))


def test_no_held_out_document_is_an_error_that_names_the_fraction_that_gives_one(tmp_path):
    path = write_corpus(tmp_path, n_documents=12)
    with pytest.raises(
        UserError, match=r"takes none of the 12 documents for validation"
    ) as refusal:
        prepare(config_of(path, validation_fraction=1e-6))
    enough = float(str(refusal.value).rpartition(" ")[2])
    cache = prepare(config_of(path, validation_fraction=enough))
    assert cache.manifest.splits["validation"].documents == 1


def test_a_corpus_that_is_all_held_out_is_refused(tmp_path):
    text = next(t for t in map(str, range(100)) if validation_draw(t) < 0.5)
    with pytest.raises(UserError, match="takes all 1 documents for validation"):
        prepare(config_of(write_texts(tmp_path, [text]), validation_fraction=0.5))


MEASURE = """
import sys
from pathlib import Path
from bottleneck.config import DataConfig
from bottleneck.data import cache_writer, tokens

path, cache_dir, tokenizer = sys.argv[1:]
cache_writer._BATCH_CHARACTERS = 2**16  # so that a small corpus, too, has many batches
cache_writer._COUNTED_TOKENS = 2**16
tokens.prepare(DataConfig(corpus="text", paths=(path,), cache_dir=cache_dir, tokenizer=tokenizer))
# The peak of this process in MB; getrusage would count the one that started it.
status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) / 1024)
"""


def test_memory_does_not_grow_with_the_corpus(config, tmp_path):
    tokenizer = prepare(config).path / "tokenizer.json"
    peaks = []
    for megabytes in (2, 8):
        path = write_corpus(tmp_path / str(megabytes), n_documents=megabytes * 500, n_words=550)
        assert path.stat().st_size > megabytes * 0.9e6
        command = [sys.executable, "-c", MEASURE, path, tmp_path / f"cache{megabytes}", tokenizer]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peaks.append(float(output))
    # Texts and ids of 6 MB more would take 20 MB if they were kept, their encodings 300. The pages
    # of the shards that were read to be counted, 4 MB more, can be taken back at any time.
    assert peaks[1] - peaks[0] < 10
