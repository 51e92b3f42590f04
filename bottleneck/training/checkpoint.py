"""Orbax checkpoints of a run: items `params`, `opt_state` and `meta`, saved in the background."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    CustomSteps,
    EveryNSteps,
    LatestN,
    PreservationPolicy,
)

from bottleneck.config import CheckpointConfig
from bottleneck.folders import absolute


class Checkpointer:
    """Saves and restores (params, opt_state) by step, and keeps those that the config asks for."""

    def __init__(self, folder: Path, config: CheckpointConfig):
        kept: list[PreservationPolicy] = [LatestN(config.keep_last), CustomSteps(config.steps)]
        if config.keep_every is not None:
            kept.append(EveryNSteps(config.keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(kept), cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(absolute(folder), options=options)

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, params: Any, opt_state: Any) -> None:
        """Returns once the arrays are copied off the device; the writing goes on behind.

        Nothing is done for a step that is saved already.
        """
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                opt_state=ocp.args.StandardSave(opt_state),
                meta=ocp.args.JsonSave({"step": step}),
            ),
        )

    def restore(self, step: int, abstract_state: tuple[Any, Any]) -> tuple[Any, Any]:
        """(params, opt_state) of a step, laid out as the abstract arrays say."""
        params, opt_state = abstract_state
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(params),
                opt_state=ocp.args.StandardRestore(opt_state),
            ),
        )
        return restored["params"], restored["opt_state"]

    def wait(self) -> None:
        """Returns when everything saved is on disk."""
        self._manager.wait_until_finished()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._manager.close()


def save_params(folder: Path, step: int, params: Any, origin: dict[str, Any]) -> None:
    """Saves the parameters of a model that was not trained here, beside the steps already there.

    Args:
        origin: where they come from; it goes into the item `meta`.
    """
    with ocp.CheckpointManager(folder.resolve()) as manager:
        manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                meta=ocp.args.JsonSave({"step": step, **origin}),
            ),
        )
