"""Packages hand out the names they list, and the examples of their documentation pages hold."""

import doctest
import importlib
import inspect
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest

import bottleneck

ROOT = Path(bottleneck.__file__).parent
PACKAGES = sorted(
    ".".join(path.parent.relative_to(ROOT.parent).parts) for path in ROOT.glob("*/**/__init__.py")
)
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture(params=PACKAGES)
def package(request):
    return importlib.import_module(request.param)


def test_the_examples_of_a_package_hold(package):
    assert doctest.testmod(package, optionflags=OPTIONS).failed == 0


def test_each_name_of_a_package_is_there_and_documented(package):
    handed_out = getattr(package, "__all__", [])
    assert len(set(handed_out)) == len(handed_out)
    for name in handed_out:
        value = getattr(package, name)
        if inspect.isroutine(value) or inspect.isclass(value) or inspect.ismodule(value):
            page = value.__doc__ or ""
            # A dataclass without a docstring gets its signature for one.
            assert page and not page.startswith(f"{name}("), name
        # An imported module would hide a function of its name.
        is_module = (Path(package.__file__).parent / f"{name}.py").exists()
        assert inspect.ismodule(value) == is_module, name


def test_names_are_imported_when_they_are_first_used():
    program = (
        "import sys; from bottleneck import laws;"
        "assert 'fit' in dir(laws) and 'numpy' not in sys.modules;"
        "from bottleneck.laws import fit, points; assert fit is laws.fit;"
        "from bottleneck.laws.points import Points; assert laws.Points is Points;"
        "import bottleneck.laws.rank; assert laws.fit_rank is bottleneck.laws.rank.fit_rank"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_unknown_name_is_the_usual_error():
    laws = importlib.import_module("bottleneck.laws")
    with pytest.raises(
        AttributeError, match=r"'bottleneck\.laws' has no attribute 'fitt'"
    ) as raised:
        _ = laws.fitt
    assert (raised.value.name, raised.value.obj) == ("fitt", laws)
    with pytest.raises(ImportError, match="cannot import name 'fitt'"):
        from bottleneck.laws import fitt  # noqa: F401
    assert not hasattr(laws, "fitt")


def test_pydoc_reads_a_package_as_its_documentation():
    laws = importlib.import_module("bottleneck.laws")
    page = pydoc.plain(pydoc.render_doc(laws))
    for name in laws.__all__:
        value = getattr(laws, name)
        if inspect.isroutine(value):
            assert f"\n    {name}(" in page
            assert inspect.getdoc(value).splitlines()[0] in page
    assert "attach" not in page.split("PACKAGE CONTENTS")[1]
