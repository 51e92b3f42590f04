"""Whether data keep up: tokens a second with nothing behind them, and what the demo waits.

python benchmarks/input_pipeline.py
"""

from __future__ import annotations

import time

import demo_run
import frame

from bottleneck.commands.flags import load_config
from bottleneck.data.batches import Batches
from bottleneck.data.tokens import prepare

STEPS = 2000


def main() -> None:
    """Prints both, and the share of the time of training, which is to be below 1 %."""
    config = load_config(str(demo_run.ROOT / "configs/nano.py"), {})
    batches = Batches(
        prepare(config.data),
        batch_size=config.train.batch_size,
        sequence_length=config.train.sequence_length,
        seed=config.seed,
    )
    rates = []
    for _ in range(3):
        start = time.perf_counter()
        n = sum(1 for _ in batches.iterate(0, STEPS))
        rates.append(n * config.tokens_per_step / (time.perf_counter() - start))
    record = demo_run.time_record()
    other = sum(record[f"{name}_seconds"] for name in ("compile", "probe", "checkpoint"))
    rows = [
        {
            "rate": frame.spread(rates, ",.0f"),
            "share": f"{record['data_seconds'] / (record['seconds'] - other):.2%}",
        }
    ]
    columns = {"rate": "tokens/s with nothing behind", "share": "of training, the demo waits"}
    frame.report("input_pipeline", rows, columns)


if __name__ == "__main__":
    main()
