"""Train every cell of a sweep, or one of them; repeat the command to resume.

Without --list, --status or --index, trains all cells on this machine, each in its own process that
logs to DIR/logs. Exits with 1 if a cell is not complete.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from bottleneck.commands.flags import add_world, check_vocabulary, joined_world, parse_sweep_command
from bottleneck.commands.parsing import Parser, option, switch, whole
from bottleneck.errors import UserError
from bottleneck.parallel.host_memory import keep_freed_memory
from bottleneck.storage.folders import as_path
from bottleneck.sweep.cells import Cell


def main(argv: list[str]) -> int:
    """Returns 0, or 1 if a cell is not complete; raises `UserError` before anything runs."""
    parser = Parser("python -m bottleneck sweep", description=__doc__)
    parser.add_argument("--workdir", metavar="DIR", help="folder of the cells' run folders")
    what = parser.add_mutually_exclusive_group()
    switch(what, "--list", "print the cells and their cost")
    switch(what, "--status", "show the progress of the cells")
    option(what, "--index", whole(0), "train only cell N, in this process")
    option(what, "--parallel", whole(1), "cells to train at a time", 1)
    switch(parser, "--retry", "also train cells again that ended with an error")
    add_world(parser)
    arguments, cells = parse_sweep_command(parser, argv)

    from bottleneck.sweep import table as sweep_table
    from bottleneck.terminal import PlainConsole

    screen = PlainConsole(highlight=False)
    if not screen.is_terminal:
        screen.width = 200  # so that names in a file are not folded
    if arguments.list:
        screen.print(sweep_table.cost_table(cells))
        return 0
    if arguments.workdir is None:
        raise UserError("--workdir=DIR is missing: the folder of the cells' run folders")
    root = as_path(arguments.workdir)
    if arguments.status:
        sweep_table.watch(cells, root, screen)
        return 0
    for cell in cells:
        check_vocabulary(cell.config)
    if arguments.index is not None:
        if arguments.index >= len(cells):
            allowed = f"from 0 to {len(cells) - 1}"
            raise UserError(f"--index={arguments.index} is not allowed; it must be {allowed}")
        _train(cells[arguments.index], root, arguments)
        return 0

    from bottleneck.sweep.runner import Stopped, run_all

    start = [sys.executable, "-m", "bottleneck", "sweep", f"--config={arguments.config}"]
    start += [f"--workdir={arguments.workdir}", *(a for a in argv if a.startswith("--config."))]
    how = {"parallel": arguments.parallel, "retry": arguments.retry}
    try:
        are_complete = run_all(cells, root, lambda cell: [*start, f"--index={cell.index}"], **how)
    except Stopped as stop:
        print("stopped; repeat the command to resume", file=sys.stderr)
        return stop.exit_code
    return 0 if are_complete else 1


def _train(cell: Cell, root: Path, arguments: argparse.Namespace) -> None:
    """Trains one cell; process 0 holds its lock, so that no other command trains it too."""
    keep_freed_memory()
    with contextlib.ExitStack() as stack:
        stack.enter_context(joined_world(arguments))

        import jax

        from bottleneck.parallel import compile_cache
        from bottleneck.sweep.runner import Places, alone, failure_recorded
        from bottleneck.training.loop import train

        compile_cache.use(cell.config)
        places = Places(root, cell.name)
        if jax.process_index() == 0:
            stack.enter_context(alone(places))
            stack.enter_context(failure_recorded(places))
        train(cell.config, places.workdir)
