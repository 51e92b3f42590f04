"""Released models: their names on the hub, and their folders, downloaded if they are missing."""

from __future__ import annotations

import os
import re
from pathlib import Path

from bottleneck.errors import UserError
from bottleneck.pretrained.safetensors_folder import conversion

# Configuration, tokenizer, and the safetensors of the whole model.
PATTERNS = [
    "config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
]

UNREACHABLE = (
    "is not on this machine and the hub cannot be reached; give a folder, or try again with a "
    "network"
)

_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


def locate(path_or_name: str | os.PathLike[str], revision: str | None = None) -> Path:
    """Returns the folder of a model, after a download if it is a name on the hub.

    Args:
        path_or_name: a folder, or a name on the hub such as "EleutherAI/pythia-70m".
        revision: a branch, tag or commit on the hub; None is its main branch.
    Raises:
        UserError: if the folder, name or revision does not exist, or the hub cannot be reached.
    """
    path = Path(path_or_name).expanduser()
    if path.is_dir():
        if revision is not None:
            raise UserError(f"{path} is a folder and has no revision {revision}")
        return path
    name = os.fspath(path_or_name)
    if not _NAME.fullmatch(name) or path.exists():
        raise UserError(f"{name} is neither a folder nor a name such as EleutherAI/pythia-70m")

    from huggingface_hub import errors, snapshot_download

    asked = name if revision is None else f"revision {revision} of {name}"
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=PATTERNS))
    except errors.RevisionNotFoundError as error:
        raise UserError(f"the hub's {name} has no revision {revision}") from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(f"{asked} {UNREACHABLE}") from error
    except (OSError, ValueError) as error:
        raise UserError(refusal(error, name, asked)) from error
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{asked} has no safetensors; if you trust it, convert it once: "
            + conversion(name, revision)
        )
    return folder


def refusal(error: Exception, name: str, asked: str) -> str:
    """Returns one line for an error of the hub's library about something of a model."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return (
            f"the hub gives {name} only to users who accepted its terms; do so, then hf auth login"
        )
    if isinstance(error, (errors.RepositoryNotFoundError, errors.HFValidationError)):
        return f"{name} is neither a folder here nor a model that the hub gives you access to"
    return f"the hub did not give {asked}: {' '.join(str(error).split())}"
