"""Orbax checkpoints of a run: items `params`, `opt_state` and `meta`, saved in the background.

Every item has a seal (`bottleneck.runs.seals`) and is checked before it is restored. A run resumes
from the newest intact checkpoint; damaged ones are moved aside, never deleted.
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
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from bottleneck.config import CheckpointConfig
from bottleneck.errors import UserError
from bottleneck.runs import seals
from bottleneck.runs.folder import saved_steps
from bottleneck.storage.folders import absolute, cannot_write, free_bytes, is_remote, writing

# Longest time for a save. orbax measures it on the wall clock, which someone may set meanwhile.
_MOST_SECONDS = 86_400

ITEMS = ("params", "opt_state", "meta")

_KEPT = "earlier checkpoints are intact, and the same command resumes from them"


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
    """Returns the handlers of all items; orbax warns of items without one."""
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
    """Silences background tracebacks of a failed save; the caller gets the error.

    orbax logs the traceback and closes the event loop. TensorStore's other writes then fail to
    report to that loop, each with an error that nobody can catch.
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
    """Saves and restores (params, opt_state) by step; keeps the steps that the config names."""

    def __init__(self, folder: Path, config: CheckpointConfig):
        """Moves damaged checkpoints aside; `UserError` if checkpoints exist but none is intact."""
        self._folder = absolute(folder)
        _print_no_tracebacks()
        _put_damaged_aside(self._folder)
        kept: list[policies.PreservationPolicy] = [policies.LatestN(config.keep_last)]
        kept.append(policies.CustomSteps(config.steps))
        if config.keep_every is not None:
            kept.append(policies.EveryNSteps(config.keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=True,
            async_options=ocp.options.AsyncOptions(timeout_secs=_MOST_SECONDS),
        )
        with self._writing():
            self._manager = ocp.CheckpointManager(
                self._folder, options=options, handler_registry=handlers()
            )

    def latest_step(self) -> int | None:
        """Returns the newest step with an intact checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, params: Any, opt_state: Any) -> None:
        """Returns once the arrays are off the device; writing continues in the background.

        A step that is already saved is skipped.
        Raises: `UserError` if this checkpoint or the previous one cannot be written.
        """
        if step in self._manager.all_steps():
            return
        size = sum(leaf.nbytes for leaf in jax.tree.leaves((params, opt_state)))
        with self._writing(size):
            self._manager.wait_until_finished()
            if not is_remote(self._folder) and free_bytes(self._folder) < size:
                raise OSError(errno.ENOSPC, "")
            items = ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                opt_state=ocp.args.StandardSave(opt_state),
                meta=ocp.args.JsonSave({"step": step}),
            )
            self._manager.save(step, args=items)

    def restore(self, step: int, abstract_state: tuple[Any, Any]) -> tuple[Any, Any]:
        """Returns (params, opt_state) of a step with the shardings of the abstract arrays."""
        params, opt_state = abstract_state
        items = ocp.args.Composite(
            params=ocp.args.StandardRestore(params), opt_state=ocp.args.StandardRestore(opt_state)
        )
        restored = self._manager.restore(step, args=items)
        return restored["params"], restored["opt_state"]

    def wait(self) -> None:
        """Returns when everything saved is on disk; `UserError` if it cannot be written."""
        with self._writing():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _writing(self, size: int | None = None) -> Iterator[None]:
        """Raises `UserError` if the block cannot write."""
        try:
            yield
        except TimeoutError as error:
            raise UserError(
                f"saving to {self._folder} did not end in time, or the clock of this machine was "
                f"set meanwhile; {_KEPT}"
            ) from error
        except (OSError, ValueError) as error:
            number = getattr(error, "errno", None)
            if isinstance(error, ValueError):  # TensorStore puts the errno into its text
                found = re.search(r"os_error_code='?(\d+)|OS error (\d+)", str(error))
                if found is None:
                    raise
                number = int(found[1] or found[2])
            problem = cannot_write(self._folder, number, str(error), size)
            raise UserError(f"{problem}; {_KEPT}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        # After an error the caller must see that one, not one of a save in progress.
        with self._writing() if error is None else contextlib.suppress(Exception):
            self._manager.close()


def _put_damaged_aside(folder: Path) -> None:
    """Moves checkpoints newer than the newest intact one aside, and reports them.

    Each process checks its share of the files; all then agree on the result.
    """
    damaged: dict[int, str] = {}
    for step in reversed(saved_steps(folder)):
        problem = _damage(folder / str(step))
        if not multihost_utils.process_allgather(np.array(problem is not None)).any():
            break
        damaged[step] = problem or "another process found it damaged"
    else:
        if damaged:
            reasons = "; ".join(f"step {step}: {problem}" for step, problem in damaged.items())
            raise UserError(
                f"no checkpoint in {folder} is intact ({reasons}); restore one from a copy, or "
                "choose a new folder to start again"
            )
    for step, problem in damaged.items():
        aside = folder.parent / "damaged" / f"checkpoint-{step}"
        if jax.process_index() == 0:
            with writing(aside):
                aside.parent.mkdir(exist_ok=True)
                names = [path.name.split(".")[0] for path in aside.parent.iterdir()]
                taken = names.count(aside.name)
                aside = aside.with_name(f"{aside.name}.{taken}") if taken else aside
                (folder / str(step)).rename(aside)
        print(
            f"the checkpoint of step {step:,} is damaged and is not used: {problem}; "
            f"it is now in {aside.parent}",
            file=sys.stderr,
        )
    multihost_utils.sync_global_devices("damaged checkpoints are moved aside")


def _damage(checkpoint: Path) -> str | None:
    """Returns the first damage in this process's share of a checkpoint's files, or None."""
    if not (checkpoint / "params").is_dir():
        return f"{checkpoint / 'params'} is missing"
    part, parts = jax.process_index(), jax.process_count()
    found = (seals.damage(checkpoint / name, part, parts) for name in ITEMS)
    return next((problem for problem in found if problem is not None), None)


def save_params(folder: Path, step: int, params: Any, origin: dict[str, Any]) -> None:
    """Saves the parameters of a model trained elsewhere, beside the steps already in the folder.

    The item `meta` records their origin.
    """
    options = ocp.CheckpointManagerOptions(cleanup_tmp_directories=True)
    items = ocp.args.Composite(
        params=ocp.args.StandardSave(params), meta=ocp.args.JsonSave({"step": step, **origin})
    )
    folder = folder.resolve()
    with ocp.CheckpointManager(folder, options=options, handler_registry=handlers()) as manager:
        manager.save(step, args=items)


def read_params(folder: Path, step: int) -> Any:
    """Returns the parameters at a step, each array whole on the first CPU device."""
    # Without a target orbax asks for the devices that saved the arrays.
    here = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    options = ocp.CheckpointManagerOptions(create=False)
    with ocp.CheckpointManager(folder, options=options, handler_registry=handlers()) as manager:
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
            manager.item_metadata(step)["params"].tree,
        )
        items = ocp.args.Composite(params=ocp.args.StandardRestore(target))
        return manager.restore(step, args=items)["params"]
