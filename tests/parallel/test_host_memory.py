"""The memory of arrays on a CPU: kept between steps, and left alone where it must be."""

import json
import os
import subprocess
import sys

import pytest

from bottleneck.parallel import host_memory

# Pages that the system had to hand out while an array of 64 MB was made and dropped twenty times,
# once the heap had settled. By itself, glibc keeps what is below 32 MB now and then (its threshold
# for mmap grows with what was freed), and never what is above it.
COUNT_PAGES = """
import json, resource, sys
from bottleneck.parallel.host_memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
import jax, jax.numpy as jnp
array = jnp.ones((4096, 4096))
step = jax.jit(jnp.negative)
for _ in range(20):
    step(array).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step(array).block_until_ready()
print(json.dumps([kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before]))
"""


def count_pages(how):
    command = [sys.executable, "-c", COUNT_PAGES, how]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


@pytest.mark.skipif(
    not (sys.platform == "linux" and os.confstr_names.get("CS_GNU_LIBC_VERSION")),
    reason="glibc alone has these settings",
)
def test_a_step_finds_the_pages_that_the_last_one_left():
    (kept, pages), (_, without) = count_pages("keep"), count_pages("leave")
    assert kept
    assert pages < without / 2


@pytest.mark.parametrize("asked", ["cuda", "tpu", "tpu,cpu"])
def test_nothing_is_changed_where_an_accelerator_holds_the_arrays(asked, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", asked)
    monkeypatch.setattr(
        host_memory.ctypes, "CDLL", lambda _: pytest.fail("the C library was asked")
    )
    assert not host_memory.keep_freed_memory()
