"""What pandas and xarray do when they find this package where they look for another of its name.

Each claim is tried in a fresh interpreter, because they look once, when they are imported. The
array library must not be installed beside us: one of the two would hide the other.
"""

import itertools
import json
import subprocess
import sys
from typing import Any

import pytest

import bottleneck


def run_python(code: str, *options: str) -> str:
    """What a fresh interpreter prints when it runs the code; fails with its complaint."""
    done = subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


PANDAS_WARNS = "ignore:Pandas requires version '"

COMPUTE = """
import json, sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for name in sys.argv[1:]:
        __import__(name)
import numpy as np, pandas as pd, xarray as xr

values = [[3.0, np.nan, 1.0], [5.0, 8.0, np.nan]]
frame = pd.DataFrame(values)
array = xr.DataArray(values, dims=("row", "column"))

def reductions(table, **axis):
    names = ("sum", "mean", "median", "min", "max", "std", "var")
    return {name: np.asarray(getattr(table, name)(**axis)).tolist() for name in names}

with xr.set_options(use_bottleneck=True):
    accelerated = reductions(array, dim="row", skipna=True)
    rolled = array.rolling(row=2, min_periods=1).max().values[-1].tolist()
print(json.dumps({
    "warnings": [str(w.message) for w in caught if "bottleneck" in str(w.message)],
    "pandas": reductions(frame, axis=0),
    "xarray": reductions(array, dim="row"),
    "xarray, use_bottleneck": accelerated,
    "rolling maximum": rolled,
    "forward fill": frame.ffill().values[-1].tolist(),
}))
"""

FILL = """
import xarray as xr
with xr.set_options(use_bottleneck=True, use_numbagg=False):
    array = xr.DataArray([1.0, float("nan"), 3.0], dims="x")
    try:
        {call}
    except AttributeError as error:
        print(error)
"""


@pytest.mark.parametrize(
    "order", list(itertools.permutations(["bottleneck", "pandas", "xarray"])), ids="-".join
)
def test_pandas_and_xarray_compute_beside_us_in_any_order(order: tuple[str, ...]) -> None:
    printed = run_python(f"import sys; sys.argv[1:] = {list(order)}\n{COMPUTE}")
    result: dict[str, Any] = json.loads(printed)

    (warning,) = result.pop("warnings")
    assert warning.startswith("Pandas requires version '")
    assert f"'bottleneck' (version '{bottleneck.__version__}' currently installed)" in warning

    # Columns are (3, 5), (nan, 8) and (1, nan); all values here are exact in binary.
    middle = [4.0, 8.0, 1.0]
    by_hand = {
        "sum": [8.0, 8.0, 1.0],
        "mean": middle,
        "median": middle,
        "min": [3.0, 8.0, 1.0],
        "max": [5.0, 8.0, 1.0],
    }
    spread_of_sample = {"var": [2.0, None, None], "std": [2.0**0.5, None, None]}
    spread_of_population = {"var": [1.0, 0.0, 0.0], "std": [1.0, 0.0, 0.0]}
    without_nan = json.loads(json.dumps(result).replace("NaN", "null"))
    assert without_nan == {
        "pandas": by_hand | spread_of_sample,
        "xarray": by_hand | spread_of_population,
        "xarray, use_bottleneck": by_hand | spread_of_population,
        "rolling maximum": [5.0, 8.0, 1.0],
        "forward fill": [5.0, 8.0, 1.0],
    }


@pytest.mark.parametrize(
    ("call", "missing"),
    [
        ("array.ffill('x')", "push"),
        ("array.bfill('x')", "push"),
        ("array.rank('x')", "nanrankdata"),
    ],
)
def test_xarray_asks_us_for_functions_that_only_the_other_library_has(
    call: str, missing: str
) -> None:
    printed = run_python(FILL.format(call=call), "-W", PANDAS_WARNS)
    assert printed.strip() == f"module 'bottleneck' has no attribute '{missing}'"


def test_filling_and_ranking_through_pandas_is_a_way_around() -> None:
    printed = run_python(
        """
import json
import xarray as xr
series = xr.DataArray([1.0, float("nan"), 3.0], dims="x").to_pandas()
back = [xr.DataArray(s).values.tolist() for s in (series.ffill(), series.bfill(), series.rank())]
print(json.dumps(back))
""",
        "-W",
        PANDAS_WARNS,
    )
    assert printed.replace("NaN", "null").strip() == (
        "[[1.0, 1.0, 3.0], [1.0, 3.0, 3.0], [1.0, null, 2.0]]"
    )


def test_our_commands_keep_that_warning_from_their_users() -> None:
    code = """
from bottleneck.__main__ import main
main(["--version"])
import pandas
"""
    assert run_python(code, "-W", "error").strip() == bottleneck.__version__


def test_importing_us_costs_those_libraries_nothing() -> None:
    printed = run_python("import sys, bottleneck; print('\\n'.join(sys.modules))")
    loaded = set(printed.split())
    assert "bottleneck" in loaded
    assert loaded.isdisjoint({"absl", "flax", "jax", "ml_collections", "numpy", "polars"})


def test_our_version_stays_below_any_that_pandas_would_accept() -> None:
    assert bottleneck.__version__.split(".")[0] == "0"
