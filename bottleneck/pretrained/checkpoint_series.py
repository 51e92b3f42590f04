"""The steps of a released model: which there are, and where each one lies.

Three layouts: a folder with a subfolder for each step, a model in a cache of the hub (refs that
name snapshots), and a name on the hub, whose revisions are asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bottleneck.errors import UserError
from bottleneck.pretrained.hub import locate

_REVISION = re.compile(r"step[-_]?(\d+)")
_SNAPSHOT = re.compile(r"\w[\w.-]*")
_FOLDER = re.compile(r"[^.].*?(\d+)|\d+")  # no hidden one


@dataclass(frozen=True)
class Release:
    """One step of a released model."""

    path_or_name: str
    revision: str | None = None

    def folder(self) -> Path:
        """Where its files lie, after download where they are on the hub; raises `UserError`."""
        if self.revision is None and not Path(self.path_or_name).is_dir():
            raise UserError(f"{self.path_or_name} is not there, though a revision names it")
        return locate(self.path_or_name, self.revision)


def releases(source: str) -> dict[int, Release]:
    """Step → where it lies, for all steps of one model.

    Args:
        source: a folder with subfolders whose names end in the step, such as step1000; the folder
            models--ORG--NAME of a cache of the hub; or a name on the hub, with revisions stepN.
    Raises:
        UserError: where it is none of these, or two have the same step.
    """
    path = Path(source).expanduser()
    if not path.is_dir():
        found = _of_hub(source)
    elif (path / "refs").is_dir() and (path / "snapshots").is_dir():
        found = _of_cache(path)
    else:
        folders = sorted(p for p in path.iterdir() if p.is_dir())
        found = [(p.name, _number(_FOLDER, p.name), Release(str(p))) for p in folders]
    steps: dict[int, tuple[str, Release]] = {}
    for name, step, release in found:
        if step is None:
            continue
        if step in steps:
            raise UserError(f"{source}: {steps[step][0]} and {name} are both step {step}")
        steps[step] = (name, release)
    if not steps:
        raise UserError(
            f"{source} has no steps; it must have a subfolder or a revision for each, named like "
            "step1000"
        )
    return {step: steps[step][1] for step in sorted(steps)}


def _number(pattern: re.Pattern[str], name: str) -> int | None:
    """The step that a name says; None where it says none."""
    if not pattern.fullmatch(name):
        return None
    return int(re.findall(r"\d+", name)[-1])


def _of_cache(path: Path) -> list[tuple[str, int | None, Release]]:
    found = []
    for ref in sorted(p for p in (path / "refs").iterdir() if p.is_file()):
        commit = ref.read_text(encoding="utf-8", errors="replace").strip()
        if not _SNAPSHOT.fullmatch(commit):
            raise UserError(f"{ref} holds {commit!r}; it must be the name of a snapshot beside it")
        snapshot = path / "snapshots" / commit
        found.append((ref.name, _number(_REVISION, ref.name), Release(str(snapshot))))
    return found


def _of_hub(name: str) -> list[tuple[str, int | None, Release]]:
    try:
        revisions = _revisions(name)
    except ConnectionError as error:
        # Compute nodes often have no network, and what was downloaded before is enough.
        from huggingface_hub import constants

        cached = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
        if not (cached / "refs").is_dir():
            raise UserError(
                f"{name} is not on this machine and the hub cannot be reached; give a folder, or "
                "try again with a network"
            ) from error
        return _of_cache(cached)
    return [(r, _number(_REVISION, r), Release(name, r)) for r in revisions]


def _revisions(name: str) -> Iterable[str]:
    """The branches and tags of a model on the hub; `ConnectionError` where there is no network."""
    from huggingface_hub import HfApi, errors

    try:
        refs = HfApi().list_repo_refs(name)
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise UserError(
            f"{name} is neither a folder here nor a model of the hub that it would give you"
        ) from error
    except errors.HfHubHTTPError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the hub did not list the revisions of {name}: {reason}") from error
    except Exception as error:  # of the transport library, which is another in each release
        raise ConnectionError(str(error)) from error
    return dict.fromkeys(ref.name for ref in (*refs.branches, *refs.tags))
