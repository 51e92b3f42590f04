"""The names of a model's checkpoints: revisions on the hub, and folders."""

import re


def step_of_revision(name: str) -> int | None:
    """Returns the step in a revision such as step1000, or None."""
    found = re.fullmatch(r"step[-_]?(\d+)", name)
    return int(found[1]) if found else None


def step_of_folder(name: str) -> int | None:
    """Returns the number at the end of a folder's name, or None; hidden folders have none."""
    found = re.search(r"\d+\Z", name)
    return int(found[0]) if found and not name.startswith(".") else None
