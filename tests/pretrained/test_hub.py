"""Models by name: what is asked of the hub, and one line for each way in which it says no.

The hub is out of reach in the tests; its own library's door stands in for it.
"""

import fnmatch
from unittest.mock import Mock

import huggingface_hub
import pytest
from huggingface_hub import errors

from bottleneck.errors import UserError
from bottleneck.pretrained.hub import locate


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with one model of these files; returns the calls that were made."""
    files = ["config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin", "x.py"]
    calls = []

    def snapshot_download(name, *, revision, allow_patterns):
        calls.append((name, revision))
        for file in files:
            if any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns):
                (tmp_path / file).touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return files, calls


def test_a_name_gets_config_tokenizer_and_safetensors_and_no_code(hub, tmp_path):
    assert locate("EleutherAI/pythia-70m", "step1000") == tmp_path
    assert hub[1] == [("EleutherAI/pythia-70m", "step1000")]
    got = sorted(path.name for path in tmp_path.iterdir())
    assert got == ["config.json", "model.safetensors", "tokenizer.json"]


def test_a_folder_is_asked_of_nobody(hub, tmp_path):
    assert locate(tmp_path) == tmp_path
    with pytest.raises(UserError, match="is a folder and has no revision step1000"):
        locate(tmp_path, "step1000")
    assert hub[1] == []


def test_a_name_without_safetensors_says_how_to_convert_it(hub):
    hub[0].remove("model.safetensors")
    with pytest.raises(UserError, match=r'M.from_pretrained\("a/b", revision="r"\)'):
        locate("a/b", "r")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.RevisionNotFoundError("a\nb", response=Mock()), "has no revision step7$"),
        (errors.RepositoryNotFoundError("a\nb", response=Mock()), "nor a model that the hub"),
        (errors.GatedRepoError("a\nb", response=Mock()), "only to users who accepted"),
        (
            errors.LocalEntryNotFoundError("a\nb"),
            "^revision step7 of a/b is not on this machine and",
        ),
        (errors.HfHubHTTPError("a\nb", response=Mock()), "did not give revision step7 of a/b"),
        (errors.HFValidationError("a\nb"), "neither a folder here nor a model"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_no_of_the_hub_is_one_line(monkeypatch, error, message):
    def snapshot_download(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(UserError, match=message) as raised:
        locate("a/b", "step7")
    assert "\n" not in str(raised.value)


def test_without_a_network_a_name_that_is_not_here_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"^a/b is not on this machine and the hub cannot be"):
        locate("a/b")


@pytest.mark.parametrize("name", ["./absent", "a/b/c", "/absent", "https://hub/a"])
def test_what_is_neither_folder_nor_name_is_refused(hub, name):
    with pytest.raises(UserError, match="is neither a folder nor a name such as"):
        locate(name)
    assert hub[1] == []
