"""Fills in a manifest of this folder: $NAMES from the environment, $ARGS from the command line.

usage: render.py MANIFEST ARGS...; launch/gke.sh calls it. Values are written as JSON, which YAML
reads, so none can break out of its place. Needs nothing but Python.
"""

from __future__ import annotations

import json
import os
import re
import string
import sys
from pathlib import Path

# A node of these is taken away at any time, and keeps other pods off.
NODE_LABELS = {
    "on-demand": {},
    "spot": {"cloud.google.com/gke-spot": "true"},
    "reserved": {},
    "flex-start": {"cloud.google.com/gke-flex-start": "true"},
}


def render(template: str, settings: dict[str, str], arguments: list[str]) -> str:
    """The manifest; exits with one line where a value is missing or will not do."""
    name = settings.get("NAME", "")
    # The pods' host names are made of it and must have at most 63 characters.
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", name):
        sys.exit(
            f"error: NAME={name} is not allowed; it must be at most 40 small letters, digits and -"
        )
    if settings["PROVISIONING"] not in NODE_LABELS:
        known = ", ".join(NODE_LABELS)
        sys.exit(f"error: PROVISIONING={settings['PROVISIONING']} must be one of {known}")
    labels = NODE_LABELS[settings["PROVISIONING"]]
    tolerations = [
        {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}
        for key, value in labels.items()
    ]
    values = {key: json.dumps(value) for key, value in settings.items()}
    values |= {
        f"{key}_NUMBER": value
        for key, value in settings.items()
        if value.isascii() and value.isdigit()
    }
    values |= {
        # Kubernetes takes $(NAME) in an argument for a variable, and any $$ for a dollar sign.
        "ARGS": json.dumps([argument.replace("$", "$$") for argument in arguments])[1:-1],
        "NODE_LABELS": "".join(
            f"\n                {key}: {json.dumps(value)}" for key, value in labels.items()
        ),
        "TOLERATIONS": json.dumps(tolerations),
        "BARE_NAME": name,
    }
    return string.Template(template).substitute(values)


if __name__ == "__main__":
    print(render(Path(sys.argv[1]).read_text(encoding="utf-8"), dict(os.environ), sys.argv[2:]))
