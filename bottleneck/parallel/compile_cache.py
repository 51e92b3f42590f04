"""A store of compiled programs on disk, so that a resumed run need not compile again.

jax finds a program by a hash of what it computes, of jax's version and of the compiler's flags. Its
own store may keep half a file if it is killed while writing, and may run a damaged program. This
one names a file only once it is whole, checks its digest before use, and limits the total size.
"""

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
_MOST_BYTES = 2**31  # about a thousand small runs, or some dozen programs of a TPU pod
_DIGEST_BYTES = hashlib.sha256().digest_size


class Store:
    """A folder of compiled programs by key, with the interface of jax's own caches.

    A file that cannot be read or written costs a compilation and a line on standard error.
    """

    def __init__(self, folder: Path, most_bytes: int = _MOST_BYTES):
        """Keeps at most `most_bytes`; a bucket's lifecycle rules limit its own size."""
        self._path = folder  # jax logs it by this name
        self._most_bytes = most_bytes
        self._is_opened = self._is_broken = False

    def get(self, key: str) -> bytes | None:
        """Returns the value of a key; None if it is missing or damaged."""
        path = self._path / (key + _SUFFIX)
        try:
            content = path.read_bytes()
            digest, value = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
            if digest == _digest(key, value):
                if not is_remote(path):
                    os.utime(path)  # the least recently used go first
                return value
            _say(f"{path} is damaged; its program is compiled again")
            path.unlink()
        except FileNotFoundError:
            pass
        except Exception as error:  # an OSError, or anything that a bucket's client raises
            self._give_up(error)
        return None

    def put(self, key: str, value: bytes) -> None:
        """Stores a program if possible."""
        if self._is_broken:
            return
        path = self._path / (key + _SUFFIX)
        content = _digest(key, value) + value
        try:
            if is_remote(path):
                path.write_bytes(content)
                return
            if not self._is_opened:
                # Anyone who can write here can change our programs.
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
        """Removes the least recently used files, including drafts of killed processes."""
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

    JAX_COMPILATION_CACHE_DIR names the folder, or if unset the config does.
    JAX_ENABLE_COMPILATION_CACHE=false turns the store off. Call this after the processes have
    joined. Only process 0 writes, so a multi-host run needs a shared folder. Otherwise process 0
    would load a program that the others compile together, and keep them waiting. So by default
    such runs have no store. A verb that has no config takes the default.
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
    # A run has a hundred small programs: tens of milliseconds each to compile, one to load.
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # The compiler's own caches are files that this store does not manage.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


def _machine() -> str:
    """Returns a name for machines that can share compiled programs.

    A home folder may be shared by different machines. Programs for CPUs use the instructions of the
    CPU that compiled them, and have a part for each of its cores.
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
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1


def _digest(key: str, value: bytes) -> bytes:
    return hashlib.sha256(key.encode() + value).digest()


def _say(line: str) -> None:
    print(line, file=sys.stderr)
