"""The end of a run whose loss or gradient is not finite: a diagnosis and an error.

Such a step has spoilt the parameters, and only earlier checkpoints are good. With
`train.skip_bad_batches` it has left the parameters unchanged.
"""

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from bottleneck.errors import Diverged
from bottleneck.storage.folders import write_whole

DIAGNOSIS = "diagnosis.json"


def stop_diverged(bad: list[dict[str, Any]], workdir: Path | None) -> NoReturn:
    """Raises `Diverged`; writes the diagnoses of the bad steps in a row, unless `workdir` is None.

    Each has `step`, `loss`, `learning_rate`, and the norms of the gradient: `grad_norm` in all, and
    `grad_norms` by the name of the parameter.
    """
    first, last = bad[0], bad[-1]
    if workdir is not None:
        # JSON lacks these numbers.
        words = {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}
        readable = json.loads(json.dumps(bad), parse_constant=words.get)
        write_whole(workdir / DIAGNOSIS, f"{json.dumps(readable, indent=2)}\n".encode())
    spoilt = [name for name, norm in first["grad_norms"].items() if not math.isfinite(norm)]
    where = f"; the gradient is not finite in {', '.join(spoilt)}" if spoilt else ""
    steps = f"step {first['step']:,}"
    if last is not first:
        steps += f" to step {last['step']:,}"
    raise Diverged(
        f"training has diverged: from {steps} the loss is {first['loss']} and the norm of the "
        f"gradient {first['grad_norm']}, at a learning rate of {first['learning_rate']:.2e}"
        f"{where}. {DIAGNOSIS} in the run folder says more; earlier checkpoints are kept. "
        "Try a lower learning rate in a new folder, or continue with "
        "--config.train.skip_bad_batches=True --config.train.bad_steps=10"
    )
