"""The train step at Pythia's sizes against torch.compile with flash attention, and the loss at
Pythia's vocabulary, on one CUDA GPU in bfloat16: python benchmarks/gpu.py
"""

from __future__ import annotations

import sys

import frame

SIZES = (("160m", 16), ("410m", 8))  # and the batch
LENGTH = 2048


def main() -> int:
    """Returns 2 where there is no GPU."""
    if frame.gpu_name() is None:
        print("make bench-gpu needs a CUDA GPU, and nvidia-smi knows of none", file=sys.stderr)
        return 2
    import loss
    import train_step

    names, rows = ["ours", "compiled"], []
    for size, batch_size in SIZES:
        case = train_step.Case(f"configs/pythia.py:{size}", batch_size, LENGTH)
        rows.append(train_step.row(case, train_step.compare(case, names, "cuda", 3, 5.0)))
    frame.report("train_step_gpu", rows, train_step.columns(names))
    loss.main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
