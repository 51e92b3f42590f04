"""Public names of a package that are imported on first use (PEP 562), so that it imports fast."""

import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any


def attach(
    package: str, modules: Mapping[str, Iterable[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Returns a package's `__getattr__`, `__dir__` and `__all__`; call it once in its `__init__`.

    `modules` has the names that each module hands out; none if the module itself is public. A name
    must differ from every module of the package: an imported module would hide it.
    """
    homes = {name: module for module, names in modules.items() for name in names or [module]}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(
                f"module {package!r} has no attribute {name!r}",
                name=name,
                obj=sys.modules[package],  # Python then says which name is close
            )
        module = import_module(f"{package}.{homes[name]}")
        value = module if name == homes[name] else getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted(homes), list(homes)
