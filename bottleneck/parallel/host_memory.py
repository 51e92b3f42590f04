"""Settings of the C library's allocator for arrays on a CPU."""

import ctypes
import os
import sys
from pathlib import Path

# glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8

_ACCELERATORS = ("nvidia[0-9]*", "accel*", "vfio/[0-9]*", "kfd")  # their files in /dev


def keep_freed_memory() -> bool:
    """Makes glibc keep freed memory for the next arrays; returns True if it will.

    By default glibc returns every large array to the system at once. Then each step of training
    pays for the pages of its temporaries again: up to a fifth of a step on a CPU. Only the heap
    that all threads share can be kept, so they get no other; call this before jax starts its
    threads. It does nothing if arrays live on an accelerator, or without glibc.
    """
    # It is too early to ask jax for its device: that would start it.
    accelerators = [path for name in _ACCELERATORS for path in Path("/dev").glob(name)]
    asked = os.environ.get("JAX_PLATFORMS")
    is_on_cpu = asked == "cpu" if asked else not accelerators
    if sys.platform != "linux" or not is_on_cpu:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    settings = {_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1}  # -1: never
    return mallopt is not None and all(mallopt(key, value) for key, value in settings.items())
