"""What is read must never be run: the calls that would run it are nowhere in the program.

ruff bans modules and functions by their names; what hangs on an argument is looked for here.
"""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = ("bottleneck", "configs", "launch", "benchmarks")

# Config files are Python, are run, and say so in --help. Nothing else is run.
RUNS_CONFIG_FILES = Path("bottleneck/commands/flags.py")

RUNS_CODE = {"exec_module", "load_module", "run_path", "run_module", "DEFINE_config_file"}
BUILT_IN = {"eval", "exec", "compile", "__import__"}
# Arguments that open the door, and the one value of each that keeps it shut.
SHUT = {
    "allow_pickle": False,
    "markup": False,
    "shell": False,
    "trust_remote_code": False,
    "weights_only": True,
}
# Calls that must say so, whatever the default of a release.
SAYS = {"numpy.load": "allow_pickle", "rich.progress.TextColumn": "markup"}
UNPACKS = {"extractall", "unpack_archive"}
SHELLS = {"sh", "bash", "/bin/sh", "/bin/bash"}


def violations(source: str, *, runs_config_files: bool = False) -> list[str]:
    """What a file does that nothing here may, as "line: what"."""
    found = []
    tree = ast.parse(source)
    names = imported(tree)
    for node in ast.walk(tree):
        for what in [*of_call(node, names, runs_config_files), *of_words(node)]:
            found.append(f"{node.lineno}: {what}")
    return found


def imported(tree: ast.AST) -> dict[str, str]:
    """What each imported name of a file stands for."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {name.asname or name.name: name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {n.asname or n.name: f"{node.module}.{n.name}" for n in node.names}
    return names


def of_call(node: ast.AST, names: dict[str, str], runs_config_files: bool) -> list[str]:
    if not isinstance(node, ast.Call):
        return []
    found = []
    spelled = ast.unparse(node.func)
    root, _, rest = spelled.partition(".")
    full = ".".join(filter(None, (names.get(root, root), rest)))
    last = full.rpartition(".")[2]
    if not runs_config_files and (
        last in RUNS_CODE or full in BUILT_IN or full.startswith("builtins.")
    ):
        found.append(f"{last} runs code")
    if last in UNPACKS:
        found.append(f"{last} may write outside of its folder")
    arguments = {keyword.arg: keyword.value for keyword in node.keywords}
    for name, value in arguments.items():
        if name in SHUT and not is_constant(value, SHUT[name]):
            found.append(f"{name} is not {SHUT[name]}")
    if full in SAYS and SAYS[full] not in arguments:
        found.append(f"{full} does not say {SAYS[full]}={SHUT[SAYS[full]]}")
    if full == "rich.console.Console":
        found.append("rich takes text for markup; print to a bottleneck.terminal.PlainConsole")
    return found


def of_words(node: ast.AST) -> list[str]:
    """What stands in a dict, a list of words or a text that another program will read."""
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        named = [(k.value, v) for k, v in pairs if isinstance(k, ast.Constant)]
        return [
            f"{name} is not {SHUT[name]}"
            for name, value in named
            if name in SHUT and not is_constant(value, SHUT[name])
        ]
    if isinstance(node, (ast.List, ast.Tuple)):
        words = [item.value if isinstance(item, ast.Constant) else None for item in node.elts]
        if len(words) > 1 and words[0] in SHELLS and words[1] in ("-c", "-lc", "-ec"):
            return ["a command goes through a shell"]
    if isinstance(node, ast.Constant) and "trust_remote_code=true" in str(node.value).lower():
        return ["trust_remote_code is not False"]
    return []


def is_constant(node: ast.AST, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def test_no_file_of_the_program_runs_what_it_reads():
    files = [path for folder in PROGRAM for path in sorted((ROOT / folder).rglob("*.py"))]
    assert {path.relative_to(ROOT).parts[0] for path in files} == set(PROGRAM)
    found = {}
    for path in files:
        name = path.relative_to(ROOT)
        if wrong := violations(path.read_text(), runs_config_files=name == RUNS_CONFIG_FILES):
            found[str(name)] = wrong
    assert found == {}


def test_config_files_are_run_in_one_place():
    assert violations((ROOT / RUNS_CONFIG_FILES).read_text())


@pytest.mark.parametrize(
    "source",
    [
        "import numpy as np\nnp.load(path)",
        "import numpy\nnumpy.load(path, mmap_mode='r')",
        "from numpy import load\nload(path)",
        "from numpy import load as read\nread(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import numpy as np\nnp.load(path, allow_pickle=flag)",
        "import numpy as np\nnp.savez(path, allow_pickle=True)",
        "load(name, trust_remote_code=True)",
        "load(name, trust_remote_code=trusts)",
        "load(name, **{'trust_remote_code': True})",
        "arguments = 'pretrained=x,trust_remote_code=True'",
        "torch.serialization.load(path, weights_only=False)",
        "eval(text)",
        "exec(text)",
        "compile(text, 'file', 'exec')",
        "import builtins\nbuiltins.exec(text)",
        "from builtins import eval as value\nvalue(text)",
        "__import__(name)",
        "spec.loader.exec_module(module)",
        "import runpy\nrunpy.run_path(path)",
        "from runpy import run_module\nrun_module(name)",
        "config_flags.DEFINE_config_file('config')",
        "import subprocess\nsubprocess.run(command, shell=True)",
        "import subprocess\nsubprocess.run(command, shell=flag)",
        "import subprocess\nsubprocess.run(['bash', '-c', command])",
        "import rich.console\nrich.console.Console()",
        "from rich.console import Console\nConsole(markup=False)",
        "import rich.progress\nrich.progress.TextColumn(name)",
        "console.print(name, markup=True)",
        "archive.extractall(folder)",
        "import shutil\nshutil.unpack_archive(path, folder)",
    ],
)
def test_what_would_run_or_unpack_data_is_found(source):
    assert violations(source)


@pytest.mark.parametrize(
    "source",
    [
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "import json\njson.load(file)",
        "load(name, trust_remote_code=False)",
        "re.compile('a')\nprogram.compile()\nmodel.eval()",
        "import subprocess\nsubprocess.run(['git', '-c', 'a=b', 'status'])",
    ],
)
def test_what_runs_nothing_is_let_through(source):
    assert violations(source) == []


def test_ruff_refuses_each_banned_name():
    settings = tomllib.loads((ROOT / "ruff.toml").read_text())
    banned = list(settings["lint"]["flake8-tidy-imports"]["banned-api"])
    assert {"pickle", "torch.load", "yaml.load", "tarfile", "zipfile.ZipFile"} <= set(banned)
    lines = [
        f"from {name.rpartition('.')[0]} import {name.rpartition('.')[2]}"
        if "." in name
        else f"import {name}"
        for name in banned
    ]
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select=TID251"]
    command += ["--output-format=concise", "--stdin-filename=bottleneck/example.py", "-"]
    answer = subprocess.run(
        command, input="\n".join(lines), cwd=ROOT, capture_output=True, text=True
    )
    refused = {int(line.split(":")[1]) for line in answer.stdout.splitlines() if "TID251" in line}
    assert refused == set(range(1, len(banned) + 1))


def test_ruff_looks_at_the_whole_program_for_what_is_not_safe():
    settings = tomllib.loads((ROOT / "ruff.toml").read_text())
    lint = settings["lint"]
    assert {"S", "TID251"} <= set(lint["select"])
    # None of those that are let through is about running or unpacking.
    assert {rule for rule in lint["ignore"] if rule.startswith("S")} == {"S101", "S311", "S603"}
    assert "per-file-ignores" not in lint
