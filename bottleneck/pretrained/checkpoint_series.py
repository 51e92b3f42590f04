"""Lists the steps of a released model and the location of each.

There are three layouts. A folder has a subfolder per step. A model in a cache of the hub has refs
that name snapshots. A name on the hub has a revision per step.
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
_FOLDER = re.compile(r"[^.].*?(\d+)|\d+")  # not hidden


@dataclass(frozen=True)
class Release:
    """One step of a released model."""

    path_or_name: str
    revision: str | None = None

    def folder(self) -> Path:
        """Returns the folder of its files, downloaded if necessary; raises `UserError`."""
        if self.revision is None and not Path(self.path_or_name).is_dir():
            raise UserError(f"{self.path_or_name} is missing, although a revision names it")
        return locate(self.path_or_name, self.revision)


def releases(source: str) -> dict[int, Release]:
    """Returns step → release for all steps of one model.

    Args:
        source: one of these.
            - A folder with subfolders whose names end in the step, such as step1000.
            - The folder models--ORG--NAME of a cache of the hub.
            - A name on the hub, with revisions stepN.
    Raises: `UserError` if it is none of these, or two releases have the same step.
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
            f"{source} has no steps; it must have a subfolder or a revision for each, such as "
            "step1000"
        )
    return {step: steps[step][1] for step in sorted(steps)}


def step_of_revision(name: str) -> int | None:
    """Returns the step in a revision such as step1000, or None."""
    return _number(_REVISION, name)


def _number(pattern: re.Pattern[str], name: str) -> int | None:
    return int(re.findall(r"\d+", name)[-1]) if pattern.fullmatch(name) else None


def _of_cache(path: Path) -> list[tuple[str, int | None, Release]]:
    found = []
    for ref in sorted(p for p in (path / "refs").iterdir() if p.is_file()):
        commit = ref.read_text(encoding="utf-8", errors="replace").strip()
        if not _SNAPSHOT.fullmatch(commit):
            raise UserError(f"{ref} holds {commit!r}; it must name a snapshot of the same model")
        snapshot = path / "snapshots" / commit
        found.append((ref.name, step_of_revision(ref.name), Release(str(snapshot))))
    return found


def _of_hub(name: str) -> list[tuple[str, int | None, Release]]:
    try:
        revisions = _revisions(name)
    except ConnectionError as error:
        # Compute nodes often have no network; earlier downloads are enough.
        from huggingface_hub import constants

        cached = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
        if not (cached / "refs").is_dir():
            raise UserError(
                f"{name} is not on this machine and the hub cannot be reached; give a folder, or "
                "try again with a network"
            ) from error
        return _of_cache(cached)
    return [(r, step_of_revision(r), Release(name, r)) for r in revisions]


def _revisions(name: str) -> Iterable[str]:
    """Branches and tags of a model on the hub; raises `ConnectionError` without a network."""
    from huggingface_hub import HfApi, errors

    try:
        refs = HfApi().list_repo_refs(name)
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise UserError(
            f"{name} is neither a folder here nor a model that the hub gives you access to"
        ) from error
    except errors.HfHubHTTPError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the hub did not list the revisions of {name}: {reason}") from error
    except Exception as error:  # of the transport library, which differs between releases
        raise ConnectionError(str(error)) from error
    return dict.fromkeys(ref.name for ref in (*refs.branches, *refs.tags))
