"""What a training imports before its first step: nothing heavy that it does not use."""

import subprocess
import sys

# Seconds of every start, where they are installed.
HEAVY = {
    *("torch", "tensorflow", "tensorboardX", "transformers", "tensorflow_datasets", "grain"),
    *("google.cloud.storage", "gcsfs", "matplotlib", "polars", "pandas", "pyarrow", "scipy"),
    *("huggingface_hub", "requests"),
}


def test_the_training_loop_imports_nothing_heavy():
    program = "import sys, bottleneck.training.loop; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert "bottleneck.runs.tensorboard" in loaded, done.stderr
    assert loaded.isdisjoint(HEAVY)
