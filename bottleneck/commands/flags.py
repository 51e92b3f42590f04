"""`--config=FILE.py[:ARGUMENT]` with its overrides `--config.FIELD=VALUE`, and multi-host flags.

`ml_collections` gives the overrides their types. Every mistake is a `UserError` of one line.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import operator
import os
import re
import runpy
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags

from bottleneck import config as config_lib
from bottleneck.commands.parsing import option, whole
from bottleneck.errors import UserError, suggestion
from bottleneck.sections import list_item_type, require
from bottleneck.sweep.cells import Cell, expand

_OVERRIDES_HELP = """\
Override any field of the config:
  --config.model.head_rank=64 --config.train.steps=2000 --config.probe.ranks=8,16,32
None clears an optional field: --config.model.head_rank=None is a full head.
A config file is Python and is executed: use only files you trust.
"""


def parse_command(
    parser: argparse.ArgumentParser, argv: list[str], *, needs_data: bool = True
) -> tuple[argparse.Namespace, config_lib.Config]:
    """Adds `--config` to a verb's parser; returns the parsed flags and the validated config.

    If the verb `needs_data`, a given tokenizer must exist and fit the model.
    """
    arguments, assigned = _parse(parser, argv)
    config = load_config(arguments.config, assigned)
    if needs_data:
        check_vocabulary(config)
    return arguments, config


def parse_command_with_data(
    parser: argparse.ArgumentParser, argv: list[str]
) -> tuple[argparse.Namespace, config_lib.DataConfig | None]:
    """Does `parse_command` for a verb that needs only data; returns None without `--config`."""
    arguments, assigned = _parse(parser, argv, is_required=False)
    if arguments.config is not None:
        return arguments, load_config(arguments.config, assigned).data
    if assigned:
        name = next(iter(assigned))
        raise UserError(f"--config.{name} overrides a field of --config; give --config")
    return arguments, None


def parse_sweep_command(
    parser: argparse.ArgumentParser, argv: list[str]
) -> tuple[argparse.Namespace, list[Cell]]:
    """Does `parse_command` for a verb that takes a sweep; returns the flags and the cells."""
    arguments, assigned = _parse(parser, argv)
    return arguments, load_cells(arguments.config, assigned)


def add_world(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a verb that can run as one of many processes."""
    many = parser.add_argument_group(
        "many processes",
        "found automatically on TPU pods and under SLURM or Open MPI; elsewhere give all three",
    )
    option(many, "--coordinator", str, "address of process 0", metavar="HOST:PORT")
    option(many, "--processes", whole(1), "number of processes")
    option(many, "--process", whole(0), "index of this process, from 0")


@contextlib.contextmanager
def joined_world(arguments: argparse.Namespace) -> Iterator[None]:
    """Joins this process to the others; if the block fails in one process, all end."""
    world = (arguments.coordinator, arguments.processes, arguments.process)
    if any(part is not None for part in world) and None in world:
        raise UserError("give --coordinator, --processes and --process together")

    from bottleneck.parallel import distributed

    distributed.start(None if None in world else distributed.Processes(*world))
    with distributed.ended_together():
        yield


def _parse(
    parser: argparse.ArgumentParser, argv: list[str], *, is_required: bool = True
) -> tuple[argparse.Namespace, dict[str, str]]:
    """Returns the parsed flags, with `--config`, and its overrides."""
    file = "config file, such as configs/nano.py"
    option(parser, "--config", str, file, metavar="FILE.py", required=is_required)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _OVERRIDES_HELP
    others, assigned = [], {}
    for argument in argv:
        if not argument.startswith("--config."):
            others.append(argument)
            continue
        match = re.fullmatch(r"--config\.([\w.]+)=(.*)", argument, flags=re.DOTALL)
        if match is None:
            raise UserError(f"{argument}: an override has the form --config.FIELD=VALUE")
        assigned[match[1]] = match[2]
    return parser.parse_args(others), assigned


def check_vocabulary(config: config_lib.Config) -> None:
    """Raises `UserError` if a given tokenizer has more tokens than the model has rows."""
    if config.data.tokenizer is None:
        return
    from bottleneck.data.tokenizer import vocab_size_in_file

    size, rows = vocab_size_in_file(Path(config.data.tokenizer)), config.model.vocab_size
    allowed = f"at least the {size} tokens of config.data.tokenizer={config.data.tokenizer}"
    require(rows >= size, "model.vocab_size", rows, allowed)


def load_config(path: str, assigned: dict[str, str]) -> config_lib.Config:
    """Returns the validated config of a file, with its overrides; raises `UserError`."""
    return config_lib.parse(_load_fields(path, assigned))


def load_cells(path: str, assigned: dict[str, str]) -> list[Cell]:
    """Returns the validated cells of a file's sweep, with overrides of the fields they share.

    Raises: `UserError` if there is no sweep, a cell is not valid, or an overridden field varies.
    """
    fields = _load_fields(path, assigned)
    sweep = _call(path, "get_sweep", "configs/head_rank.py")
    cells = expand(fields, sweep)
    for name, value in assigned.items():
        if any(name in overrides for overrides in sweep):
            raise UserError(
                f"--config.{name}={value} has no effect: {name} varies over the sweep of {path}"
            )
    return cells


def _load_fields(path: str, assigned: dict[str, str]) -> dict[str, Any]:
    """Returns the fields of a file's config, with overrides, as nested plain values."""
    file = path.partition(":")[0]
    if not os.path.isfile(file):  # Path.is_file refuses long names
        raise UserError(f"--config={path}: {file!r} is not a file")
    fields = _call(path, "get_config", "configs/nano.py")
    if not isinstance(fields, config_dict.ConfigDict):
        raise UserError(
            f"--config={path}: get_config() must return a ConfigDict; see configs/nano.py"
        )
    known = _field_names(fields)
    for name in assigned:
        if name not in known:
            group = f"{name.rpartition('.')[0]}."
            advice = suggestion(name, [k for k in known if k.startswith(group)] or known)
            raise UserError(f"config.{name} is not a field; {advice}")
    late = _late_values(assigned)
    typed = [f"--config.{k}={v}" for k, v in assigned.items() if k not in late]
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", fields, flag_values=values, sys_argv=["", *typed])
    try:
        values(["", *typed])
    except flags.IllegalFlagValueError as error:
        raise UserError(str(error).splitlines()[0].removeprefix("flag --")) from error
    plain = fields.to_dict()
    for name, value in late.items():
        *groups, key = name.split(".")
        functools.reduce(operator.getitem, groups, plain)[key] = value
    return plain


def _late_values(assigned: dict[str, str]) -> dict[str, list[Any] | None]:
    """Returns None and the lists, "a,b", "(a, b)" or "['a', 'b']", among the overrides.

    They are set last: ml_collections cannot parse None, and reads a comma as part of a path.
    """
    late: dict[str, list[Any] | None] = {}
    for name, value in assigned.items():
        if value.lower() == "none":
            late[name] = None
            continue
        item_type = list_item_type(config_lib.Config, name)
        if item_type is not None:
            items = [item.strip(" '\"") for item in value.strip(" ()[]").split(",")]
            try:
                late[name] = [item_type(item) for item in items if item]
            except ValueError as error:
                raise UserError(f"config.{name}={value} is not allowed; {error}") from error
    return late


def _call(path: str, function: str, example: str) -> Any:
    """Calls a function of a config file with the argument that follows the colon, if any.

    Runs the file each time: a module imported before would keep its old names.
    """
    file, has_argument, argument = path.partition(":")
    try:
        names = runpy.run_path(file)
        if function not in names:
            raise UserError(f"--config={path} has no {function}(); see {example}")
        return names[function](*([argument] if has_argument else []))
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where, what = f"{Path(place.filename).name}:{place.lineno}", str(error)
        if isinstance(error, SyntaxError):
            where, what = f"{Path(error.filename or path).name}:{error.lineno}", error.msg
        said = " ".join(what.split()) or "no message"
        raise UserError(f"--config={path}: {type(error).__name__} at {where}: {said}") from error


def _field_names(fields: config_dict.ConfigDict, prefix: str = "") -> list[str]:
    names: list[str] = []
    for key, value in fields.items():
        is_group = isinstance(value, config_dict.ConfigDict)
        names += _field_names(value, f"{prefix}{key}.") if is_group else [prefix + key]
    return names
