"""Which steps a series has, by folder, by a cache of the hub, and by the hub's own list."""

from unittest.mock import Mock

import pytest
from huggingface_hub import errors
from huggingface_hub.hf_api import GitRefInfo, GitRefs

from bottleneck.errors import UserError
from bottleneck.pretrained.series_source import Release, releases


def make_cache(folder, steps, name="models--org--model"):
    """A model in a cache of the hub, whose refs name a snapshot for each step."""
    path = folder / name
    (path / "refs").mkdir(parents=True)
    for step in steps:
        (path / "snapshots" / f"hash{step}").mkdir(parents=True)
        (path / "refs" / f"step{step}").write_text(f"hash{step}")
    (path / "refs" / "main").write_text(f"hash{steps[-1]}")
    return path


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """`hub(answer)` makes the hub answer with these branches, or raise this error."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))

    def answers(answer):
        def list_repo_refs(self, name):
            if isinstance(answer, Exception):
                raise answer
            branches = [GitRefInfo(name=b, ref=f"refs/heads/{b}", target_commit="") for b in answer]
            return GitRefs(branches=branches, converts=[], tags=[])

        monkeypatch.setattr("huggingface_hub.HfApi.list_repo_refs", list_repo_refs)

    return answers


def test_steps_of_a_folder_are_numbers_at_the_end_of_names(tmp_path):
    for name in ("step1000", "step-20", "pythia-160m-step3", "400", ".cache7", "figures", "7b"):
        (tmp_path / name).mkdir()
    (tmp_path / "step9").write_text("a file")
    found = releases(str(tmp_path))
    assert list(found) == [3, 20, 400, 1000]
    assert found[20].folder() == tmp_path / "step-20"


def test_steps_of_a_cache_are_its_refs_and_main_is_none(tmp_path):
    path = make_cache(tmp_path, [1, 16, 143000])
    found = releases(str(path))
    assert {step: one.folder() for step, one in found.items()} == {
        step: path / "snapshots" / f"hash{step}" for step in (1, 16, 143000)
    }


def test_a_ref_to_a_snapshot_that_is_not_there_fails_at_its_own_step(tmp_path):
    path = make_cache(tmp_path, [1, 2])
    (path / "snapshots" / "hash1").rmdir()
    found = releases(str(path))
    assert found[2].folder().is_dir()
    with pytest.raises(UserError, match="hash1 is missing, although a revision names it"):
        found[1].folder()


@pytest.mark.parametrize("commit", ["../../elsewhere", "/etc", "..", "", "a/b", "\ud800"])
def test_a_ref_that_leads_out_of_the_cache_is_refused(tmp_path, commit):
    path = make_cache(tmp_path, [1])
    (path / "refs" / "step1").write_text(commit, errors="surrogatepass")
    with pytest.raises(UserError, match=r"refs/step1 holds .*; it must name a snapshot"):
        releases(str(path))


def test_steps_of_a_name_are_the_revisions_that_the_hub_lists(hub):
    hub(["main", "step1000", "step0", "step512", "fix-step3"])
    assert releases("org/model") == {
        step: Release("org/model", f"step{step}") for step in (0, 512, 1000)
    }


def test_a_step_of_a_name_lies_where_the_hubs_library_keeps_it(hub, tmp_path, monkeypatch):
    hub(["main", "step5", "step10"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    path = make_cache(tmp_path / "cache", [5])
    (path / "snapshots" / "hash5" / "model.safetensors").write_bytes(b"")
    found = releases("org/model")
    assert found[5].folder() == path / "snapshots" / "hash5"
    with pytest.raises(UserError, match="revision step10 of org/model is not on this machine"):
        found[10].folder()


@pytest.mark.parametrize(
    "error",
    [errors.HTTPError("no name"), errors.OfflineModeIsEnabled("offline")],
    ids=["no network", "offline"],
)
def test_without_a_network_what_was_downloaded_before_is_the_series(hub, tmp_path, error):
    hub(error)
    with pytest.raises(UserError, match="not on this machine and the hub cannot be reached"):
        releases("org/model")
    path = make_cache(tmp_path / "cache", [5, 10])
    assert [one.folder() for one in releases("org/model").values()] == [
        path / "snapshots" / "hash5",
        path / "snapshots" / "hash10",
    ]


def test_a_name_that_the_hub_does_not_know_is_one_line(hub):
    hub(errors.RepositoryNotFoundError("not found\n\nat all", response=Mock()))
    with pytest.raises(UserError, match="neither a folder here nor a model that the hub"):
        releases("org/model")


def test_two_folders_of_one_step_are_refused(tmp_path):
    (tmp_path / "step10").mkdir()
    (tmp_path / "old-10").mkdir()
    with pytest.raises(UserError, match="old-10 and step10 are both step 10"):
        releases(str(tmp_path))


def test_a_folder_without_steps_says_what_it_must_have(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(UserError, match="must have a subfolder or a revision for each, such as"):
        releases(str(tmp_path))
