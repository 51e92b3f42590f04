"""A disk that is full or read-only while a token cache is made: real ones, mounted for the test."""

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from bottleneck.config import DataConfig
from bottleneck.data.shards import ShardWriter
from bottleneck.data.tokens import prepare
from bottleneck.errors import UserError

OWN_MOUNTS = ["unshare", "-Urm"]  # a program that may mount what it alone sees

# For each of some disks: mounts it, makes the cache on it, and prints the message of the refusal or
# null, and what there is under the names of caches.
MAKE = """
import json, subprocess, sys
from pathlib import Path
from bottleneck.config import DataConfig
from bottleneck.data.tokens import prepare
from bottleneck.errors import UserError

config = DataConfig(**json.loads(sys.argv[1]))
for mount, rebuild in json.loads(sys.argv[2]):
    subprocess.run(mount, shell=True, check=True)
    message = None
    try:
        prepare(config, rebuild=rebuild).verify()
    except UserError as error:
        message = str(error)
    left = [path.name for path in Path(config.cache_dir).glob("*") if path.is_dir()]
    print(json.dumps([message, left]))
"""


def require_mounts(folder: Path) -> None:
    folder.mkdir()
    try:
        subprocess.run(
            [*OWN_MOUNTS, "mount", "-t", "tmpfs", "none", folder],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")


@pytest.fixture
def fields(tmp_path) -> dict[str, Any]:
    """A corpus whose shards, tokenizer and counts are all of some pages."""
    lines = (json.dumps({"text": f"{i} of a thousand " * 3}) for i in range(1000))
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    words = {"of": 1000, "a": 1001, "thousand": 1002, "<eos>": 1003}
    words |= {str(i): i for i in range(1000)} | {f"word {i}": i for i in range(1004, 2000)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<eos>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return {
        "corpus": "text",
        "paths": [str(tmp_path / "corpus.jsonl")],
        "tokenizer": str(tmp_path / "tokenizer.json"),
        "validation_fraction": 0.1,
        "cache_dir": str(tmp_path / "disk" / "cache"),
    }


def made_on(mounts: list[tuple[str, bool]], fields: dict[str, Any]) -> list[list]:
    """What becomes of the cache on each disk; a pair is a command, and whether to make it anew."""
    program = [sys.executable, "-c", MAKE, json.dumps(fields), json.dumps(mounts)]
    output = subprocess.run([*OWN_MOUNTS, *program], check=True, capture_output=True, text=True)
    return [json.loads(line) for line in output.stdout.splitlines()]


def test_wherever_a_disk_is_full_nothing_is_left_and_the_message_names_it(tmp_path, fields):
    disk = tmp_path / "disk"
    require_mounts(disk)
    n_bytes = Path(fields["paths"][0]).stat().st_size
    # Every number of pages and every number of files, so that each write has its turn.
    sizes = [f"size={4 * n}k" for n in range(1, 40)] + [f"nr_inodes={n}" for n in range(2, 18)]
    mounts = [(f"mount -t tmpfs -o {size} none '{disk}'", False) for size in sizes]
    outcomes = made_on(mounts, fields)
    refused = [(message, left) for message, left in outcomes if message is not None]
    assert 10 < len(refused) < len(outcomes)
    for message, left in refused:
        assert left == [] and "\n" not in message
        assert message.startswith(f"cannot write {disk}/cache/text-corpus-given-")
        assert "No space left on device" in message and f"about {n_bytes:,} bytes" in message
    assert all(len(left) == 1 for message, left in outcomes if message is None)


def test_a_read_only_disk_is_named(tmp_path, fields):
    disk = tmp_path / "disk"
    require_mounts(disk)
    ((message, left),) = made_on([(f"mount -t tmpfs -o ro none '{disk}'", False)], fields)
    assert message.startswith(f"cannot write {disk}/cache/text-corpus-given-")
    assert "Read-only file system" in message and "\n" not in message and left == []


def test_a_cache_on_a_read_only_disk_can_be_used_and_not_made_anew(tmp_path, fields):
    disk = tmp_path / "disk"
    require_mounts(disk)
    name = prepare(DataConfig(**fields)).path.name
    read_only = f"mount --bind '{disk}' '{disk}' && mount -o remount,bind,ro '{disk}'"
    used, refused = made_on([(read_only, False), ("true", True)], fields)
    assert used == [None, [name]]
    assert refused[0].startswith(f"cannot write {disk}/cache/{name}: Read-only file system")
    assert refused[1] == [name]


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EIO])
def test_a_quota_that_is_used_up_and_a_disk_that_fails_are_named(
    tmp_path, fields, monkeypatch, number
):
    append = ShardWriter.append

    def failing(self: ShardWriter, tokens: np.ndarray) -> None:
        append(self, tokens)
        if self.tokens > 1000:
            raise OSError(number, "this is why")

    monkeypatch.setattr(ShardWriter, "append", failing)
    with pytest.raises(UserError, match=r"cannot write .*/cache/text-corpus-.*: this is why; "):
        prepare(DataConfig(**fields))
    assert [path for path in Path(fields["cache_dir"]).iterdir() if path.is_dir()] == []


def test_a_rebuild_that_fails_leaves_the_cache_that_is_there(tmp_path, fields):
    config = DataConfig(**fields)
    cache = prepare(config)
    corpus = Path(config.paths[0])
    corpus.write_text(corpus.read_text() + "\nnot json")
    with pytest.raises(UserError, match="not a JSON object"):
        prepare(config, rebuild=True)
    cache.verify()
    assert [p.name for p in cache.path.parent.iterdir() if p.is_dir()] == [cache.path.name]
