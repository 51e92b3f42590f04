"""Sections of a config: frozen dataclasses that check their fields. Imports no array library."""

import dataclasses
import math
import types
import typing
from dataclasses import field
from typing import Any, ClassVar, Literal

from ml_collections import config_dict

from bottleneck.errors import UserError, suggestion

_SHOWN = 200  # characters of a value in an error


def bounded(default: Any, *, low: float = -math.inf, high: float = math.inf) -> Any:
    """Returns a dataclass field whose value is None or lies in [low, high]."""
    return field(default=default, metadata={"low": low, "high": high})


def positive(default: Any) -> Any:
    """Returns a dataclass field whose value is None or at least 1."""
    return bounded(default, low=1)


class Section:
    """A part of the config: checks every field's type and bounds, then what `check` adds."""

    prefix: ClassVar[str] = ""  # of a field's name on the command line

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for entry in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, entry.name)
            coerced = _coerce(value, hints[entry.name], self.prefix + entry.name)
            object.__setattr__(self, entry.name, coerced)
            if coerced is not None and entry.metadata:
                low, high = entry.metadata["low"], entry.metadata["high"]
                allowed = f"at least {low}" if math.isinf(high) else f"between {low} and {high}"
                self.require(entry.name, low <= coerced <= high, allowed)
        self.check()

    def check(self) -> None:
        """Raises `UserError` if fields of this section do not agree."""

    def require(self, name: str, condition: bool, allowed: str) -> None:
        """Raises `UserError` about a field of this section unless the condition holds."""
        require(condition, self.prefix + name, getattr(self, name), allowed)


def defaults(cls: type[Section]) -> config_dict.ConfigDict:
    """Returns the section's fields with their defaults; has no other names."""
    hints = typing.get_type_hints(cls)
    result = config_dict.ConfigDict()
    for entry in dataclasses.fields(cls):  # type: ignore[arg-type]
        hint = hints[entry.name]
        if _is_section(hint):
            result[entry.name] = defaults(hint)
        elif entry.default is None:
            result[entry.name] = config_dict.placeholder(typing.get_args(hint)[0])
        else:
            result[entry.name] = entry.default
    return result.lock()


def build(cls: Any, values: Any) -> Any:
    """Builds a section from nested plain values; raises `UserError` at the first fault."""
    prefix = cls.prefix
    if not isinstance(values, dict):
        name, found = f"config.{prefix}".rstrip("."), shown(values)
        raise UserError(f"{name} is {found}; a group of fields is expected")
    hints = typing.get_type_hints(cls)
    names = [entry.name for entry in dataclasses.fields(cls)]
    for key in values:
        if not isinstance(key, str):
            raise UserError(
                f"config.{prefix}{shown(key)} is not a field; a field's name is a string"
            )
        if key not in names:
            raise UserError(f"config.{prefix}{key} is not a field; {suggestion(key, names)}")
    built = {
        key: build(hints[key], value) if _is_section(hints[key]) else value
        for key, value in values.items()
    }
    return cls(**built)


def flatten(section: Any) -> dict[str, Any]:
    """Returns dotted field name → value, for every field."""
    flat: dict[str, Any] = {}
    for entry in dataclasses.fields(section):
        value = getattr(section, entry.name)
        if isinstance(value, Section):
            flat |= {f"{entry.name}.{key}": item for key, item in flatten(value).items()}
        else:
            flat[entry.name] = value
    return flat


def list_item_type(cls: Any, name: str) -> type | None:
    """Returns the type of the items of a list field such as "probe.ranks"; None for others."""
    hint = cls
    for part in name.split("."):
        hint = typing.get_type_hints(hint)[part]
    return typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else None


def _is_section(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Section)


def require(condition: bool, name: str, value: Any, allowed: str) -> None:
    """Raises `UserError` unless the condition holds; `allowed` describes a right value."""
    if not condition:
        raise UserError(f"config.{name}={shown(value)} is not allowed; it must be {allowed}")


def shown(value: Any) -> str:
    """Returns any value as text for an error: on one line, truncated if it is long."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # from the value's own code, or for integers with too many digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _coerce(value: Any, hint: Any, name: str) -> Any:
    """Returns the value as the hinted type; accepts an int as float, a list as tuple."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):  # always X | None
        return None if value is None else _coerce(value, arguments[0], name)
    if origin is Literal:
        is_one = isinstance(value, str) and value in arguments
        require(is_one, name, value, "one of " + ", ".join(map(repr, arguments)))
        return value
    if origin is tuple:
        require(isinstance(value, (tuple, list)), name, value, f"a list of {arguments[0].__name__}")
        return tuple(_coerce(item, arguments[0], name) for item in value)
    if isinstance(value, int):  # the limit of JSON readers and arrays
        require(abs(value) < 2**63, name, value, "an integer of at most 63 bits")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    is_right = isinstance(value, hint) and not (hint is int and isinstance(value, bool))
    require(is_right, name, value, f"of type {hint.__name__}")
    if hint is float:
        require(math.isfinite(value), name, value, "a finite number")
    if hint is str:
        require("\0" not in value, name, value, "a string without the character NUL")
    return value
