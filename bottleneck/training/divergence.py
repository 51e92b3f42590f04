"""What is done about a loss or a gradient that is not finite: a count, a diagnosis, an end.

Without `train.skip_bad_batches` such a step has spoilt the parameters, and the checkpoints before
it are the last good ones; with it the step has left them as they were.
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
    """Counts bad steps in a row, and ends the run where they are as many as `most`."""

    def __init__(self, most: int, workdir: Path | None):
        """The diagnosis goes into `workdir`, where that is not None."""
        self._most, self._workdir = most, workdir
        self._bad: list[dict[str, Any]] = []

    @property
    def in_a_row(self) -> int:
        """Bad steps up to the last that was seen."""
        return len(self._bad)

    def see(self, facts: dict[str, Any]) -> bool:
        """Whether a step was good; the steps are to be shown in order.

        Args:
            facts: of the step, for the diagnosis: `step`, `loss` and `grad_norm` among them.
        Raises:
            Diverged: at the last bad step that is allowed.
        """
        if math.isfinite(facts["loss"]) and math.isfinite(facts["grad_norm"]):
            self._bad.clear()
            return True
        self._bad.append(facts)
        if len(self._bad) >= self._most:
            self.stop()
        return False

    def stop(self) -> None:
        """Ends the run where its last step was bad: raises `Diverged`, after the diagnosis."""
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
            f"{where}. {DIAGNOSIS} in the run folder says more; the checkpoints before are kept. "
            "Try a lower learning rate in a new folder, or go on with "
            "--config.train.skip_bad_batches=True --config.train.bad_steps=10"
        )


def _readable(value: Any) -> Any:
    """The value with words for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _readable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_readable(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
