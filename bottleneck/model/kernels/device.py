"""The platform that a program is traced for: the one place in the package that asks."""

from __future__ import annotations

import jax

# A TPU pads the last two dimensions of an array to multiples of its vector unit.
TPU_SUBLANES, TPU_LANES = 8, 128


def platform() -> str:
    """Returns "cpu", "tpu", "gpu" or "cuda".

    Programs are also compiled for absent devices, so the mesh in context decides if it exists.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def is_one_cpu() -> bool:
    """Returns True if the program is traced for a CPU that holds every array whole."""
    return platform() == "cpu" and jax.sharding.get_abstract_mesh().size <= 1
