"""The response to a loss or a gradient that is not finite: count, diagnose, stop.

Such a step has spoilt the parameters, and only earlier checkpoints are good. With
`train.skip_bad_batches` it has left the parameters unchanged.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from bottleneck.errors import Diverged
from bottleneck.storage.folders import write_whole

DIAGNOSIS = "diagnosis.json"


class Watch:
    """Counts bad steps in a row, and ends the run at the `most`-th."""

    def __init__(self, most: int, workdir: Path | None):
        """Writes the diagnosis into `workdir`, unless that is None."""
        self._most, self._workdir = most, workdir
        self._bad: list[dict[str, Any]] = []

    @property
    def in_a_row(self) -> int:
        """The number of bad steps up to the last one seen."""
        return len(self._bad)

    def see(self, facts: dict[str, Any]) -> bool:
        """Returns True if a step was good; call it for the steps in order.

        Args:
            facts: the diagnosis of the step, including `step`, `loss` and `grad_norm`.

        Raises:
            Diverged: if this is the `most`-th bad step in a row.
        """
        if math.isfinite(facts["loss"]) and math.isfinite(facts["grad_norm"]):
            self._bad.clear()
            return True
        self._bad.append(facts)
        if len(self._bad) >= self._most:
            self.stop()
        return False

    def stop(self) -> None:
        """Writes the diagnosis and raises `Diverged` if the last step was bad."""
        if not self._bad:
            return
        first, last = self._bad[0], self._bad[-1]
        if self._workdir is not None:
            contents = json.dumps(_readable(self._bad), indent=2) + "\n"
            write_whole(self._workdir / DIAGNOSIS, contents.encode())
        norms = first["grad_norms"]
        spoilt = [name for name, norm in norms.items() if not math.isfinite(norm)]
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


def _readable(value: Any) -> Any:
    """Replaces numbers that JSON lacks by words."""
    if isinstance(value, dict):
        return {key: _readable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_readable(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
