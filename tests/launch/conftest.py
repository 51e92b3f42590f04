"""Stand-ins for gcloud, kubectl, sbatch and the like, which write down how they were called."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import HANGING

ROOT = Path(__file__).parents[2]

# Answers with the first rule whose words are all in the call and that is not used up.
FAKE = """#!{python} -ES
import json, os, sys
folder = {folder!r}
call = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
text = " ".join(call)
rules = json.load(open(folder + "/rules.json"))
answer = {{}}
for rule in rules:
    if all(word in text for word in rule["words"]) and rule["times"] != 0:
        rule["times"] -= 1
        answer = rule
        break
json.dump(rules, open(folder + "/rules.json", "w"))
stdin = sys.stdin.read() if "--filename=-" in call else ""
with open(folder + "/calls.jsonl", "a") as file:
    file.write(json.dumps({{"call": call, "stdin": stdin}}) + "\\n")
if answer.get("code") == "forward":
    os.execvp(answer["to"][0], answer["to"])
print(answer.get("output", ""))
sys.exit(answer.get("code", 0))
"""

SETTINGS = {
    "PROJECT": "my project",
    "ZONE": "us-west4-a",
    "BUCKET": "gs://bucket",
    "ACCELERATOR": "v5e:4x4",
    "NAME": "mine",
    "PROVISIONING": "spot",
    "IMAGE": "registry/bottleneck",
}


class Machine:
    """A PATH on which the tools of a cloud are stand-ins, and the settings of launch/env."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "bin").mkdir()
        for tool in ("gcloud", "kubectl", "sbatch", "srun", "scontrol"):
            fake = folder / "bin" / tool
            fake.write_text(FAKE.format(python=sys.executable, folder=str(folder)))
            fake.chmod(0o755)
        (folder / "env").write_text((ROOT / "launch/env.example").read_text())
        self.answer()

    def answer(self, *rules):
        """Rules (words, output, exit code, times); times=-1 is always."""
        keys = ("words", "output", "code", "times")
        rows = [dict(zip(keys, (words.split(), *rest), strict=True)) for words, *rest in rules]
        (self.folder / "rules.json").write_text(json.dumps(rows))

    def start(self, script, *arguments, **settings):
        mine = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
        environment = mine | SETTINGS | settings
        environment |= {
            "LAUNCH_ENV": str(self.folder / "env"),
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "PYTHON": sys.executable,
            "TMPDIR": str(self.folder),
        }
        return subprocess.Popen(
            ["bash", str(ROOT / "launch" / script), *arguments],  # noqa: S607
            env=environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script, *arguments, code=0, **settings):
        """(output, errors) of a script, which must end with this exit code."""
        process = self.start(script, *arguments, **settings)
        output, errors = process.communicate(timeout=HANGING)
        assert process.returncode == code, (process.returncode, output, errors)
        return output, errors

    @property
    def records(self):
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def calls(self):
        """Every call of a stand-in so far, as lists of words."""
        return [record["call"] for record in self.records]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)
