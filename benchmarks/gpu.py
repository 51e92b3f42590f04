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

    rows = []
    for size, batch_size in SIZES:
        case = train_step.Case(f"configs/pythia.py:{size}", batch_size, LENGTH)
        found = train_step.compare(case, ["ours", "compiled"], "cuda", 3, 5.0)["contestants"]
        ratio = found["compiled"]["ours_over_this"]
        rows.append(
            {
                "case": case.name,
                "ours": f"{found['ours']['tokens_per_second']:,.0f}",
                "theirs": f"{found['compiled']['tokens_per_second']:,.0f}",
                "ratio": f"{ratio['median']:.2f} ({ratio['range'][0]:.2f} to "
                f"{ratio['range'][1]:.2f})",
                "mfu": f"{found['ours']['mfu']:.0%}",
            }
        )
    columns = {
        "case": "model",
        "ours": "ours, tokens/s",
        "theirs": "torch.compile, tokens/s",
        "ratio": "ours / torch.compile",
        "mfu": "our MFU",
    }
    frame.report("train_step_gpu", rows, columns)
    loss.main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
