"""A folder that one process fills at a time, and that the same command resumes after a kill.

First comes the lock, which dies with its process. Then the plan, which describes the contents.
Then the results of the command, and last the done mark. A folder with only a lock and drafts counts
as new. A folder with another plan, or with foreign files, is refused.
"""

import contextlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bottleneck.errors import UserError
from bottleneck.storage import json_files
from bottleneck.storage.folders import cannot_write, is_remote, locked, writing

LOCK, PLAN, DONE = ".lock", "plan.json", "COMPLETE"
RESUMES = "what is written stays, and the same command resumes from there"


@dataclass(frozen=True)
class Workspace:
    """One plan and its folder."""

    folder: Path
    plan: Mapping[str, Any]  # field → JSON value; a folder with another value is refused
    holds: str  # the content, with its article: "a study"
    flag: str | None = "--output"  # that named the folder
    record: str = PLAN  # name of the file of the plan
    done: str = DONE  # name of the file of the facts of a finished folder
    free: Collection[str] = ()  # fields of the plan that may differ from the stored ones
    # Advice if a file of the folder is damaged.
    remedy: str = "delete the folder, and the same command makes it again"

    def check(self) -> None:
        """Raises `UserError` naming the fields of a different plan, or if other files are here."""
        path = self.folder / self.record
        if not path.exists():
            check_unused(self.folder, self.holds, self.flag)
            return
        # In the types of JSON: tuples become lists.
        plans = json_files.read(path, self.remedy), json.loads(json.dumps(self.plan))
        before, now = ({k: v for k, v in plan.items() if k not in self.free} for plan in plans)
        check_same(self.folder, self.holds, before, now, self.flag)

    @contextlib.contextmanager
    def opened(self) -> Iterator[dict[str, Any]]:
        """Claims the folder for the block, which fills it.

        Yields the facts of the done mark, empty if it is missing. Facts that the block adds become
        the done mark when it ends. A block that raises, or adds none, leaves the folder unfinished.

        Raises: `UserError` if another process has the folder, it is refused, or a write fails.
        """
        with claimed(self.folder, self.flag):
            self.check()
            if not (self.folder / self.record).exists():
                json_files.write(self.folder / self.record, dict(self.plan))
            done = self.folder / self.done
            is_done = done.exists()
            facts = json_files.read(done, self.remedy) if is_done else {}
            try:
                yield facts
            except OSError as error:
                problem = cannot_write(self.folder, error.errno, str(error))
                raise UserError(f"{problem}; {RESUMES}") from error
            if facts and not is_done:
                json_files.write(done, facts)


def check_unused(
    folder: Path, holds: str, flag: str | None = "--workdir", known: Collection[str] = ()
) -> None:
    """Raises `UserError` if a folder without a plan has other files in it, or is a file."""
    if not is_unused(folder, known):
        noun = holds.removeprefix("a ")
        problem = f"is not empty and holds no {noun}" if folder.is_dir() else "is a file"
        raise UserError(f"{_named(folder, flag)} {problem}; choose a new folder")


def check_same(
    folder: Path,
    holds: str,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    flag: str | None = "--workdir",
) -> None:
    """Raises `UserError` naming the fields in which the plan of a folder differs from today's."""
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if changed:
        old, new = (", ".join(f"{k}={_text(p.get(k))}" for k in changed) for p in (before, now))
        raise UserError(
            f"{_named(folder, flag)} holds {holds} with {old}; now {new}: choose a new folder, or "
            "the old values"
        )


def is_unused(folder: Path, known: Collection[str] = ()) -> bool:
    """Returns True if the folder is missing, or holds only a lock, drafts and `known` files."""
    if not folder.exists():
        return True
    return folder.is_dir() and all(
        path.name in (LOCK, *known) or path.name.endswith(".draft") for path in folder.iterdir()
    )


@contextlib.contextmanager
def claimed(folder: Path, flag: str | None = "--workdir") -> Iterator[None]:
    """Creates the folder if it is missing, and locks out other processes during the block.

    A new folder that the block leaves empty is removed. A bucket has no locks, so nothing is held.
    Raises `UserError` if another process has the folder.
    """
    if is_remote(folder):
        yield
        return

    def refuse(holder: str) -> None:
        raise UserError(
            f"{_named(folder, flag)} is in use by {holder}; stop that one, or choose another folder"
        )

    is_new = not folder.exists()
    with held(folder / LOCK, refuse):
        try:
            yield
        finally:
            if is_new and [path.name for path in folder.iterdir()] == [LOCK]:
                (folder / LOCK).unlink()
                folder.rmdir()


@contextlib.contextmanager
def held(lock: Path, busy: Callable[[str], None]) -> Iterator[None]:
    """Holds a lock like `folders.locked` and makes its folder; raises `UserError` if it cannot."""
    with contextlib.ExitStack() as stack:
        with writing(lock.parent):
            lock.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(lock, busy))
        yield


def _named(folder: Path, flag: str | None) -> str:
    return f"{flag}={folder}" if flag else str(folder)


def _text(value: Any) -> str:
    """Shows a value as Python does; the lists of JSON are the tuples of a plan."""
    return repr(tuple(value) if isinstance(value, list) else value)
