"""Orbax checkpoints of a run: items `params`, `opt_state` and `meta`, saved in the background.

Every item is sealed (`checkpoint_seal`) and looked at before it is restored: a run goes on from the
newest checkpoint that is whole, and those that are not are put aside, never deleted.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    CustomSteps,
    EveryNSteps,
    LatestN,
    PreservationPolicy,
)

from bottleneck.config import CheckpointConfig
from bottleneck.errors import UserError
from bottleneck.runs import seals
from bottleneck.runs.folder import saved_steps
from bottleneck.storage.folders import absolute, cannot_write, free_bytes, is_remote, writing

# That a save may take. orbax looks at the calendar for it, which may be set while it waits.
_MOST_SECONDS = 86_400

ITEMS = ("params", "opt_state", "meta")


_KEPT = "what was saved before is whole, and the same command goes on from there"


class _SealedArrays(ocp.StandardCheckpointHandler):
    def finalize(self, directory: Any) -> None:
        super().finalize(directory)
        _seal(directory)


class _SealedJson(ocp.JsonCheckpointHandler):
    def finalize(self, directory: Any) -> None:
        super().finalize(directory)
        _seal(directory)


def _seal(directory: Any) -> None:
    if jax.process_index() == 0:
        seals.seal(directory)


def handlers() -> ocp.handlers.CheckpointHandlerRegistry:
    """What saves and restores each item; of all, as orbax warns of those that it cannot read."""
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    arrays, meta = _SealedArrays(), _SealedJson()
    for item in ("params", "opt_state"):
        registry.add(item, ocp.args.StandardSave, arrays)
        registry.add(item, ocp.args.StandardRestore, arrays)
    registry.add("meta", ocp.args.JsonSave, meta)
    registry.add("meta", ocp.args.JsonRestore, meta)
    return registry


@functools.cache
def _print_no_tracebacks() -> None:
    """Of a save that failed: its error comes to who waits, and the rest is noise.

    orbax logs it with its traceback, and closes the event loop that TensorStore's other writes want
    to tell that they have ended, each of which is an error that nobody can catch.
    """

    def one_line(record: logging.LogRecord) -> bool:
        record.exc_info = record.exc_text = None
        return True

    def but_for_closed_loops(unraisable: Any, others: Any = sys.unraisablehook) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            others(unraisable)

    logging.getLogger("absl").addFilter(one_line)
    sys.unraisablehook = but_for_closed_loops


class Checkpointer:
    """Saves and restores (params, opt_state) by step, and keeps those that the config asks for."""

    def __init__(self, folder: Path, config: CheckpointConfig):
        """Raises `UserError` where there are checkpoints and none is whole."""
        self._folder = absolute(folder)
        _print_no_tracebacks()
        _put_damaged_aside(self._folder)
        kept: list[PreservationPolicy] = [LatestN(config.keep_last), CustomSteps(config.steps)]
        if config.keep_every is not None:
            kept.append(EveryNSteps(config.keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(kept),
            cleanup_tmp_directories=True,
            async_options=ocp.options.AsyncOptions(timeout_secs=_MOST_SECONDS),
        )
        with self._writing():
            self._manager = ocp.CheckpointManager(
                self._folder, options=options, handler_registry=handlers()
            )

    def latest_step(self) -> int | None:
        """The newest step whose checkpoint is whole."""
        return self._manager.latest_step()

    def save(self, step: int, params: Any, opt_state: Any) -> None:
        """Returns once the arrays are copied off the device; the writing goes on behind.

        Nothing is done for a step that is saved already.

        Raises: `UserError` where this checkpoint, or the one before, cannot be written.
        """
        if step in self._manager.all_steps():
            return
        size = sum(leaf.nbytes for leaf in jax.tree.leaves((params, opt_state)))
        with self._writing(size):
            self._manager.wait_until_finished()
            if not is_remote(self._folder) and free_bytes(self._folder) < size:
                raise OSError(errno.ENOSPC, "")
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
        """Returns when everything saved is on disk; raises `UserError` where it cannot be."""
        with self._writing():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _writing(self, size: int | None = None) -> Iterator[None]:
        """Raises `UserError` where the block, which saves, cannot write."""
        try:
            yield
        except TimeoutError as error:
            raise UserError(
                f"saving to {self._folder} has not ended in time, or the clock of this machine was "
                f"set meanwhile; {_KEPT}"
            ) from error
        except (OSError, ValueError) as error:
            number = getattr(error, "errno", None)
            if isinstance(error, ValueError):  # TensorStore's, with the errno in its text
                found = re.search(r"os_error_code='?(\d+)|OS error (\d+)", str(error))
                if found is None:
                    raise
                number = int(found[1] or found[2])
            problem = cannot_write(self._folder, number, str(error), size)
            raise UserError(f"{problem}; {_KEPT}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            with self._writing():
                self._manager.close()
        else:
            # It ends with that error, and not with one of a save that was under way.
            with contextlib.suppress(Exception):
                self._manager.close()


def _put_damaged_aside(folder: Path) -> None:
    """Moves the checkpoints that are newer than the newest whole one out of the way, and says so.

    The processes share out the reading, and are of one mind afterwards.
    """
    damaged: dict[int, str] = {}
    for step in reversed(saved_steps(folder)):
        problem = _damage(folder / str(step))
        if not _any(problem is not None):
            break
        damaged[step] = problem or "another process found it damaged"
    else:
        if damaged:
            reasons = "; ".join(f"step {step}: {problem}" for step, problem in damaged.items())
            raise UserError(
                f"no checkpoint in {folder} is whole ({reasons}); bring one back from a copy, or "
                "choose a new folder to start anew"
            )
    for step, problem in damaged.items():
        aside = folder.parent / "damaged" / f"checkpoint-{step}"
        if jax.process_index() == 0:
            with writing(aside):
                aside.parent.mkdir(exist_ok=True)
                taken = sum(
                    path.name.split(".")[0] == aside.name for path in aside.parent.iterdir()
                )
                aside = aside.with_name(f"{aside.name}.{taken}") if taken else aside
                (folder / str(step)).rename(aside)
        print(
            f"the checkpoint of step {step:,} is damaged and is not used: {problem}; "
            f"it now lies in {aside.parent}",
            file=sys.stderr,
        )
    multihost_utils.sync_global_devices("damaged checkpoints are put aside")


def _damage(checkpoint: Path) -> str | None:
    """What this process finds wrong in its part of a checkpoint's files."""
    if not (checkpoint / "params").is_dir():
        return f"{checkpoint / 'params'} is missing"
    part, parts = jax.process_index(), jax.process_count()
    items = (checkpoint / name for name in ITEMS)
    found = (seals.damage(item, part, parts) for item in items)
    return next((problem for problem in found if problem is not None), None)


def _any(is_so: bool) -> bool:
    """Whether it is so for any process."""
    if jax.process_count() == 1:
        return is_so
    return bool(np.any(multihost_utils.process_allgather(np.array(is_so))))


def save_params(folder: Path, step: int, params: Any, origin: dict[str, Any]) -> None:
    """Saves the parameters of a model that was not trained here, beside the steps already there.

    Args:
        origin: where they come from; it goes into the item `meta`.
    """
    options = ocp.CheckpointManagerOptions(cleanup_tmp_directories=True)
    with ocp.CheckpointManager(
        folder.resolve(), options=options, handler_registry=handlers()
    ) as manager:
        manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                meta=ocp.args.JsonSave({"step": step, **origin}),
            ),
        )
