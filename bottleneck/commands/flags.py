"""`--config=FILE.py[:ARGUMENT]` and its `--config.FIELD=VALUE` overrides, for the verbs with them.

Here too are the flags of the verbs that run as many processes. `ml_collections` loads the file and
types the overrides; every mistake leaves here as one line.
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
from bottleneck.commands.parsing import whole
from bottleneck.errors import UserError, suggestion
from bottleneck.sections import list_item_type
from bottleneck.sweep.cells import Cell, expand

_OVERRIDES_HELP = """\
any field of the config can be overridden, dots between the names:
  --config.model.head_rank=64 --config.train.steps=2000 --config.probe.ranks=8,16,32
None clears an optional field: --config.model.head_rank=None is a full head.
A config file is Python and is run: open only those that you trust.
"""


def parse_command(
    parser: argparse.ArgumentParser, argv: list[str], *, needs_data: bool = True
) -> tuple[argparse.Namespace, config_lib.Config]:
    """The parsed flags of a verb and its validated config; adds `--config` to the parser's flags.

    Args:
        needs_data: whether the verb reads data, so that a given tokenizer must be there and fit.
    """
    arguments, assigned = _parse(parser, argv, is_required=True)
    config = load_config(arguments.config, assigned)
    if needs_data:
        check_vocabulary(config)
    return arguments, config


def parse_command_with_data(
    parser: argparse.ArgumentParser, argv: list[str]
) -> tuple[argparse.Namespace, config_lib.DataConfig | None]:
    """As `parse_command`, for verbs that need no more than data, or none: then there is None."""
    arguments, assigned = _parse(parser, argv, is_required=False)
    if arguments.config is None:
        if assigned:
            raise UserError(f"--config.{next(iter(assigned))} overrides a --config, and has none")
        return arguments, None
    return arguments, load_config(arguments.config, assigned).data


def parse_sweep_command(
    parser: argparse.ArgumentParser, argv: list[str]
) -> tuple[argparse.Namespace, list[Cell]]:
    """As `parse_command`, of a verb that takes a sweep: its flags and the cells."""
    arguments, assigned = _parse(parser, argv, is_required=True)
    return arguments, load_cells(arguments.config, assigned)


def add_world(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a verb that may run as one of many processes."""
    many = parser.add_argument_group(
        "many processes",
        "found by themselves on TPU pods and under SLURM or Open MPI; elsewhere say all three",
    )
    many.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    many.add_argument("--processes", type=whole(1), metavar="N", help="how many there are")
    many.add_argument("--process", type=whole(0), metavar="I", help="which one this is, from 0")


@contextlib.contextmanager
def joined_world(arguments: argparse.Namespace) -> Iterator[None]:
    """Joins this process to the others that the flags of `add_world` name, or that are found.

    If the block fails in one of them, all end.
    """
    world = (arguments.coordinator, arguments.processes, arguments.process)
    if any(part is not None for part in world) and None in world:
        raise UserError("--coordinator, --processes and --process belong together")

    from bottleneck.parallel import distributed

    distributed.start(None if None in world else distributed.Processes(*world))
    with distributed.ended_together():
        yield


def _parse(
    parser: argparse.ArgumentParser, argv: list[str], *, is_required: bool
) -> tuple[argparse.Namespace, dict[str, str]]:
    """The parsed flags, `--config` among them, and its overrides."""
    parser.add_argument(
        "--config",
        required=is_required,
        metavar="FILE.py",
        help="config file, such as configs/nano.py",
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _OVERRIDES_HELP
    overrides = [argument for argument in argv if argument.startswith("--config.")]
    assigned = dict(_parse_override(override) for override in overrides)
    return parser.parse_args([a for a in argv if not a.startswith("--config.")]), assigned


def check_vocabulary(config: config_lib.Config) -> None:
    """Raises `UserError` where a given tokenizer has more tokens than the model has rows for."""
    if config.data.tokenizer is None:
        return
    from bottleneck.data.tokenizer import vocab_size_in_file

    size = vocab_size_in_file(Path(config.data.tokenizer))
    if size > config.model.vocab_size:
        raise UserError(
            f"config.model.vocab_size={config.model.vocab_size} is not allowed; it must be at "
            f"least the {size} tokens of config.data.tokenizer={config.data.tokenizer}"
        )


def load_config(path: str, assigned: dict[str, str]) -> config_lib.Config:
    """The validated config of a file, its fields overridden as assigned; raises `UserError`."""
    return config_lib.parse(_load_fields(path, assigned))


def load_cells(path: str, assigned: dict[str, str]) -> list[Cell]:
    """The validated cells of a file's sweep, the fields that all share overridden as assigned.

    Raises:
        UserError: where the file has no sweep, a cell is no valid config, or a field is assigned
            that varies over the sweep.
    """
    fields = _load_fields(path, assigned)
    sweep = _read_sweep(path)
    cells = expand(fields, sweep)
    varying = {name for overrides in sweep for name in overrides}
    for name, value in assigned.items():
        if name in varying:
            raise UserError(
                f"--config.{name}={value} would be lost: {name} varies over the sweep of {path}"
            )
    return cells


def _load_fields(path: str, assigned: dict[str, str]) -> dict[str, Any]:
    """The fields of a file's config as nested plain values, overridden as assigned."""
    file = path.partition(":")[0]
    if not os.path.isfile(file):  # unlike a Path's, it takes a name of any length
        raise UserError(f"--config={path}: there is no file {file}")
    fields = _read_file(path)
    known = _field_names(fields)
    for name in assigned:
        if name not in known:
            raise UserError(f"config.{name} is not a field; {_nearest(name, known)}")
    # ml_collections has no way to write None on a command line, and takes commas for parts of a
    # path, so None and lists are put in afterwards.
    later = {
        name: _late_value(name, value) for name, value in assigned.items() if _is_late(name, value)
    }
    typed = [f"--config.{k}={v}" for k, v in assigned.items() if k not in later]
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", fields, flag_values=values, sys_argv=["", *typed])
    try:
        values(["", *typed])
    except flags.IllegalFlagValueError as error:
        raise UserError(str(error).splitlines()[0].removeprefix("flag --")) from error
    plain = fields.to_dict()
    for name, value in later.items():
        *groups, key = name.split(".")
        functools.reduce(operator.getitem, groups, plain)[key] = value
    return plain


def _is_late(name: str, value: str) -> bool:
    return value.lower() == "none" or list_item_type(config_lib.Config, name) is not None


def _late_value(name: str, value: str) -> list[Any] | None:
    """None, or the items of "a,b", "(a, b)" or "['a', 'b']"."""
    if value.lower() == "none":
        return None
    items = [item.strip(" '\"") for item in value.strip(" ()[]").split(",")]
    item_type = list_item_type(config_lib.Config, name) or str
    try:
        return [item_type(item) for item in items if item]
    except ValueError as error:
        raise UserError(f"config.{name}={value} is not allowed; {error}") from error


def _parse_override(override: str) -> tuple[str, str]:
    match = re.fullmatch(r"--config\.([\w.]+)=(.*)", override, flags=re.DOTALL)
    if match is None:
        raise UserError(f"{override}: an override has the form --config.FIELD=VALUE")
    return match[1], match[2]


def _read_file(path: str) -> config_dict.ConfigDict:
    """What the file's get_config returns; an error of the file's own ends in one line."""
    fields = _call(path, "get_config", "so it is no config; see configs/nano.py")
    if not isinstance(fields, config_dict.ConfigDict):
        raise UserError(
            f"--config={path}: get_config() must return a ConfigDict, see configs/nano.py"
        )
    return fields


def _read_sweep(path: str) -> Any:
    """What the file's get_sweep returns, given the same argument as its get_config."""
    return _call(path, "get_sweep", "so it is no sweep; see configs/head_rank.py")


def _call(path: str, function: str, otherwise: str) -> Any:
    """What a function of a config file returns, given what follows the colon, if anything does.

    The file is run anew each time: of a module that was imported before, names would remain.
    """
    file, has_argument, argument = path.partition(":")
    with _errors_in_one_line(path):
        names = runpy.run_path(file)
        if function not in names:
            raise UserError(f"--config={path}: it has no {function}(), {otherwise}")
        return names[function](*([argument] if has_argument else []))


@contextlib.contextmanager
def _errors_in_one_line(path: str) -> Iterator[None]:
    """Turns an error of a config file's own code into a `UserError`."""
    try:
        yield
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
    for key in fields:
        value = fields[key]
        is_group = isinstance(value, config_dict.ConfigDict)
        names += _field_names(value, f"{prefix}{key}.") if is_group else [prefix + key]
    return names


def _nearest(name: str, known: list[str]) -> str:
    """A suggestion among the fields of the same group, where the group exists."""
    group = name.rpartition(".")[0]
    return suggestion(name, [k for k in known if k.startswith(f"{group}.")] or known)
