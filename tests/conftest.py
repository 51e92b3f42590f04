"""Every test, and every program that a test starts, runs on the CPU unless told otherwise.

The CPU poses as four devices, so that a mesh can be tested; what needs one device takes the first.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Of programs that an earlier test run compiled none says what these sources do.
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")
if os.environ["JAX_PLATFORMS"] == "cpu":
    os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
