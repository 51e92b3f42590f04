"""Compiled programs on disk: a second process loads them, and no state of the disk stops it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bottleneck.parallel import compile_cache
from bottleneck.parallel.compile_cache import Store

# A process that says how many programs it asked for and how many it did not have to compile.
PROGRAM = """
import json, sys
import jax, jax.numpy as jnp
from bottleneck.config import ComputeConfig, Config
from bottleneck.parallel import compile_cache

seen = []
jax.monitoring.register_event_listener(lambda event, **_: seen.append(event.rpartition("/")[2]))
compile_cache.use(Config(compute=ComputeConfig(compile_cache=json.loads(sys.argv[1]))))
matrix = jnp.arange(64.0).reshape(8, 8) / 64
value = jax.jit(lambda x: jnp.tanh(x @ x).sum())(matrix)
asked, found = (seen.count(e) for e in ("compile_requests_use_cache", "cache_hits"))
print(json.dumps({"value": float(value).hex(), "asked": asked, "found": found}))
"""
# The other tests have a folder.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}


def run(folder, **environment):
    """What a process says, and what it says on standard error."""
    given = json.dumps(None if folder is None else str(folder))
    command = [sys.executable, "-W", "error", "-c", PROGRAM, given]
    process = subprocess.run(
        command, capture_output=True, text=True, env=ENVIRONMENT | environment, check=False
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout), process.stderr


def programs(folder):
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A folder that one process has filled, and what that one said."""
    folder = tmp_path_factory.mktemp("compiled")
    return folder, run(folder)


def test_a_second_process_compiles_nothing_and_computes_the_same(filled):
    folder, (first, said) = filled
    assert first["asked"] > 0 and first["found"] == 0 and said == ""
    second, said = run(folder)
    assert second == first | {"found": first["asked"]} and said == ""


def flip_a_bit_of_the_program(content):
    changed = bytearray(content)
    changed[-len(changed) // 3] ^= 1
    return bytes(changed)


DAMAGES = {
    "a bit": flip_a_bit_of_the_program,
    "half": lambda content: content[: len(content) // 2],
    "all": lambda content: b"",
    "grown": lambda content: content + b"\0",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_and_mended(filled, damage):
    folder, (first, _) = filled
    for path in programs(folder):
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    again, said = run(folder)
    assert again == first
    assert said.count("is damaged; its program is compiled again\n") == first["asked"]
    assert said.count("\n") == first["asked"]
    assert Store(programs(folder)[0].parent).get(programs(folder)[0].stem) is not None


def test_a_program_under_the_name_of_another_is_not_run(tmp_path):
    store = Store(tmp_path)
    store.put("one", b"1")
    (tmp_path / "one.program").rename(tmp_path / "two.program")
    assert store.get("two") is None


def test_a_folder_that_cannot_be_written_costs_one_line(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    said_value, said = run(file)
    assert said_value["found"] == 0
    assert said.startswith(f"compiled programs are not kept in {file}/")
    assert said.endswith(
        ": Not a directory; --config.compute.compile_cache=FOLDER names another place\n"
    )
    assert said.count("\n") == 1


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, capsys):
    def fill(path, content):
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    store = Store(tmp_path)
    monkeypatch.setattr(Path, "write_bytes", fill)
    store.put("one", b"1" * 1000)
    store.put("two", b"2" * 1000)
    assert programs(tmp_path) == []
    assert capsys.readouterr().err.count("No space left on device") == 1


def test_the_least_recently_used_make_room(tmp_path):
    store = Store(tmp_path)
    for i, key in enumerate("abc"):
        store.put(key, bytes(1000))
        os.utime(tmp_path / f"{key}.program", (i, i))
    (tmp_path / ".d.1.draft").write_bytes(bytes(1000))  # of a process that was killed
    os.utime(tmp_path / ".d.1.draft", (0, 0))
    assert store.get("a") is not None
    later = Store(tmp_path, most_bytes=2100)
    later.put("e", bytes(1000))
    assert [path.name for path in programs(tmp_path)] == ["a.program", "c.program", "e.program"]


def test_what_jax_is_told_comes_first(tmp_path):
    theirs = tmp_path / "theirs"
    run(tmp_path / "ours", JAX_COMPILATION_CACHE_DIR=str(theirs))
    run(tmp_path / "ours", JAX_ENABLE_COMPILATION_CACHE="false")
    assert not (tmp_path / "ours").exists()
    assert theirs.is_dir()


def test_none_is_off():
    assert run(None)[0]["found"] == 0


def test_many_processes_share_a_given_folder_alone(tmp_path):
    chosen = f"""
import jax
from bottleneck.config import ComputeConfig, Config
from bottleneck.parallel import compile_cache

jax.distributed.is_initialized = lambda: True
compile_cache.use(Config())
assert jax.config.jax_compilation_cache_dir is None
compile_cache.use(Config(compute=ComputeConfig(compile_cache={str(tmp_path)!r})))
assert jax.config.jax_compilation_cache_dir.startswith({str(tmp_path)!r})
"""
    subprocess.run([sys.executable, "-c", chosen], env=ENVIRONMENT, check=True)


def test_programs_are_those_of_cpus_of_one_kind(monkeypatch):
    here = compile_cache._machine()
    assert compile_cache._machine() == here
    monkeypatch.setattr(compile_cache, "_n_cores", lambda: 1000)
    assert compile_cache._machine() != here
