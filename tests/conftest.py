"""Every test, and every program that a test starts, runs on the CPU unless told otherwise."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
