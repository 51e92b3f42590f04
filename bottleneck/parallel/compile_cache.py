"""Compiled programs kept on disk, so that a run started again loads what it compiled before.

jax finds a program by what it computes, by its own version and by the flags of its compiler. Here
is where programs lie and how. jax's own store leaves half a file where it is killed while it
writes, never replaces it, and may run a program whose bits have rotted; in this one a file has its
name once it is whole, begins with a digest that is looked at before the program is run, and makes
room when there are too many.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from pathlib import Path
from typing import Any

import jax

from bottleneck.config import Config
from bottleneck.storage.folders import as_path, is_remote

_SUFFIX = ".program"
_MOST_BYTES = 2**31  # some thousand small runs, or some dozen programs of a TPU pod
_DIGEST_BYTES = hashlib.sha256().digest_size


class Store:
    """A folder of compiled programs by key, in the interface that jax wants of one.

    What cannot be read or written costs a compilation and a line on standard error, nothing more.
    """

    def __init__(self, folder: Path, most_bytes: int = _MOST_BYTES):
        """`most_bytes` are left when something is added; in a bucket that is left to its rules."""
        self._path = folder  # jax logs it by this name
        self._most_bytes = most_bytes
        self._is_opened = self._is_broken = False

    def get(self, key: str) -> bytes | None:
        """What was put under a key, or None where it is not there or not as it was put."""
        path = self._path / (key + _SUFFIX)
        try:
            content = path.read_bytes()
            digest, value = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
            if digest == _digest(key, value):
                if not is_remote(path):
                    os.utime(path)  # the least recently used go first
                return value
            _say(f"{path} is damaged, and its program is compiled again")
            path.unlink()
        except FileNotFoundError:
            pass
        except Exception as error:  # of a disk, or of whatever a bucket's client raises
            self._give_up(error)
        return None

    def put(self, key: str, value: bytes) -> None:
        """Keeps a program, if it can."""
        if self._is_broken:
            return
        path = self._path / (key + _SUFFIX)
        content = _digest(key, value) + value
        try:
            if is_remote(path):
                path.write_bytes(content)
                return
            if not self._is_opened:
                # Who writes here decides what our programs do.
                self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._make_room()
                self._is_opened = True
            draft = path.with_name(f".{key}.{os.getpid()}.draft")
            try:
                draft.write_bytes(content)
                draft.replace(path)
            except OSError:
                draft.unlink(missing_ok=True)
                raise
        except Exception as error:
            self._give_up(error)

    def _make_room(self) -> None:
        """Removes the least recently used, drafts of killed processes among them."""
        found = [(entry.stat(), entry.path) for entry in os.scandir(self._path) if entry.is_file()]
        n_bytes = 0
        for status, path in sorted(found, key=lambda one: one[0].st_mtime, reverse=True):
            n_bytes += status.st_size
            if n_bytes > self._most_bytes:
                Path(path).unlink(missing_ok=True)

    def _give_up(self, error: Exception) -> None:
        if not self._is_broken:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            _say(
                f"compiled programs are not kept in {self._path}: {reason}; "
                "--config.compute.compile_cache=FOLDER names another place"
            )
        self._is_broken = True


def use(config: Config | None = None) -> None:
    """Makes this process keep its compiled programs on disk, and load them from there.

    JAX_COMPILATION_CACHE_DIR names the folder if it is set, else the config does;
    JAX_ENABLE_COMPILATION_CACHE=false keeps nothing. Call it after the processes have joined: only
    process 0 writes, so many processes need a folder that all see. Otherwise one would load what
    the others compile together, and keep them waiting; so they have none unless one is named.

    Args:
        config: None for a verb that has no config: that is the default.
    """
    config = config or Config()
    options: Any = jax.config
    folder = options.jax_compilation_cache_dir or config.compute.compile_cache
    if folder == "auto":
        folder = None if jax.distributed.is_initialized() else f"{config.data.cache_dir}/compiled"
    if folder is None or not options.jax_enable_compilation_cache:
        return
    store = Store(as_path(folder) / _machine())
    from jax._src import compilation_cache

    hook: Any = compilation_cache
    hook.get_file_cache = lambda path: (store, path)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Of a hundred small programs each costs tens of milliseconds to compile, and one to load.
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # The compiler's own caches are files of its own, which nothing here looks after.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


def _machine() -> str:
    """A name for machines that can run each other's programs as if they had compiled them.

    Programs for CPUs use the instructions of the CPU that they were compiled on, and are cut into
    as many parts as it has cores for us; a home folder may be that of many machines.
    """
    facts = [platform.machine(), platform.processor(), str(_n_cores())]
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        kinds = ("vendor_id", "cpu family", "model", "model name", "flags", "Features", "CPU part")
        lines = cpu.read_text().splitlines()
        facts += sorted({line for line in lines if line.split("\t")[0].strip() in kinds})
    digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:12]}"


def _n_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _digest(key: str, value: bytes) -> bytes:
    return hashlib.sha256(key.encode() + value).digest()


def _say(line: str) -> None:
    print(line, file=sys.stderr)
