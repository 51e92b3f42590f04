"""Whatever stands in a config, a flag, a config file or a sweep: valid, or refused in one line."""

import dataclasses
import functools
import json
import operator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bottleneck import config as config_lib
from bottleneck.commands.flags import load_cells, load_config
from bottleneck.config import Config
from bottleneck.errors import UserError
from bottleneck.sections import Section, flatten
from bottleneck.sweep.cells import expand
from bottleneck.sweep.runner import Places

NAMES = list(flatten(Config()))
DEFAULTS = config_lib.to_dict(Config())


class Strange:
    """A value of nobody's type, whose own code does not work."""

    def __repr__(self):
        raise RuntimeError

    def __eq__(self, other):
        raise RuntimeError

    __hash__ = object.__hash__


# Line breaks in names are `UserError`'s to spell out.
names = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=5)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-2, 4096),
    st.builds(pow, st.sampled_from([10, -10]), st.sampled_from([19, 401, 5001])),
    st.sampled_from([2**63, "xla", "float32", "\0", "a\nb"]),
    st.floats(),
    st.floats(0, 1),
    st.text(),
    st.binary(max_size=8),
    st.complex_numbers(),
    st.builds(Strange),
    st.just(int),
)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(names | st.integers() | st.none(), inner, max_size=3)
    ),
    max_leaves=4,
)


def with_value(name, value):
    fields = json.loads(json.dumps(DEFAULTS))
    *groups, key = name.split(".")
    functools.reduce(operator.getitem, groups, fields)[key] = value
    return fields


def check_one_line(error, limit=2000):
    assert "\n" not in str(error) and len(str(error)) < limit
    return str(error)


def check_survives_json(config):
    text = json.dumps(config_lib.to_dict(config))
    assert config_lib.parse(json.loads(text)) == config
    assert json.dumps(config_lib.to_dict(config_lib.parse(json.loads(text)))) == text


@given(st.sampled_from(NAMES), values)
def test_any_value_of_any_field_is_valid_or_refused_by_name(name, value):
    try:
        config = config_lib.parse(with_value(name, value))
    except UserError as error:
        # Of fields that do not agree, the line names both.
        assert name in check_one_line(error)
    else:
        check_survives_json(config)


@given(st.sampled_from([None, *(f.name for f in dataclasses.fields(Config))]), values)
def test_any_value_in_place_of_a_section_or_of_all_is_valid_or_refused(section, value):
    try:
        config = config_lib.parse(value if section is None else {**DEFAULTS, section: value})
    except UserError as error:
        line = check_one_line(error)
        assert line.startswith("config") and (section is None or section in line)
    else:
        check_survives_json(config)


@pytest.fixture(scope="module")
def nano():
    return "configs/nano.py"


texts = st.one_of(
    st.text(max_size=20),
    values.map(lambda value: "a strange one" if _is_strange(value) else repr(value)[:200]),
    st.sampled_from(["None", "none", "", "()", "[", "1,2", "1e400", "0x10", "nan", "-1", "True"]),
)


def _is_strange(value):
    try:
        repr(value)
    except Exception:
        return True
    return False


@given(name=st.sampled_from(NAMES) | st.from_regex(r"[\w.]{1,12}", fullmatch=True), text=texts)
def test_any_override_is_typed_or_refused_in_one_line(nano, name, text):
    try:
        config = load_config(nano, {name: text})
    except UserError as error:
        check_one_line(error)
    else:
        check_survives_json(config)


BASE = "from bottleneck.config import base\n"
FILES = {
    "empty": b"",
    "no text": b"\0\0",
    "not UTF-8": b"# \xff\xfe\n",
    "a syntax error": b"def get_config(:\n",
    "too deep": b"x = " + b"(" * 1000 + b")" * 1000,
    "leaves": b"import sys\nsys.exit(3)\n",
    "leaves late": b"def get_config():\n    import sys; sys.exit('a\\nb')\n",
    "leaves in silence": b"raise SystemExit\n",
    "recurses": b"def get_config():\n    return get_config()\n",
    "raises nothing said": b"def get_config():\n    raise ValueError\n",
    "raises two lines": b"def get_config():\n    raise OSError('a\\nb\\n')\n",
    "nothing": b"def get_config():\n    return None\n",
    "a dict": b"def get_config():\n    return {}\n",
    "a number": b"get_config = 3\n",
    "another config": b"from ml_collections import ConfigDict\n"
    b"def get_config():\n    return ConfigDict({'a': 3})\n",
    "a section that is none": b"from ml_collections import ConfigDict\n"
    b"def get_config():\n    return ConfigDict({'model': 3})\n",
    "wants an argument": b"def get_config(size):\n    return size\n",
}


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
@pytest.mark.parametrize("content", FILES.values(), ids=FILES.keys())
def test_a_config_file_that_will_not_do_is_one_line(tmp_path, content):
    path = tmp_path / "config.py"
    path.write_bytes(content)
    for load in (load_config, load_cells):
        with pytest.raises(UserError) as error:
            load(str(path), {})
        assert "config" in check_one_line(error.value)


@pytest.mark.parametrize(
    "path", ["", ":", ":x", "/", ".", "x" * 300, "x/" * 3000, "a\0b", "/dev/null"]
)
def test_a_path_that_is_no_config_file_is_one_line(path):
    with pytest.raises(UserError, match="is not a file") as error:
        load_config(path, {})
    assert "\n" not in str(error.value)


fields = st.sampled_from([*NAMES, "model", "", ".", "model.", "seed.x"]) | names
cells = st.dictionaries(fields | st.integers() | st.none(), values, max_size=3)
sweeps = (
    values
    | st.lists(cells, max_size=4)
    | st.lists(
        st.dictionaries(
            st.sampled_from(["seed", "data.text_field"]), st.integers(0, 9) | st.text()
        ),
        max_size=4,
    )
)


@given(sweeps)
def test_any_sweep_has_cells_with_folders_of_their_own_or_is_refused(sweep):
    try:
        found = expand(DEFAULTS, sweep)
    except UserError as error:
        check_one_line(error, limit=4000)
        return
    root = Path("/root/of/sweep")
    for cell in found:
        check_survives_json(cell.config)
        places = Places(root, cell.name)
        assert places.workdir.parent == root and cell.name not in (".", "..", "")
        for path in (places.workdir, places.log, places.lock, places.failure):
            assert len(path.name.encode()) <= 255 and "\0" not in path.name
            assert path.parent in (root, root / "logs") and ".." not in path.parts
    assert len({cell.name.casefold() for cell in found}) == len(found) == len(sweep)


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (5, "must return a list of dicts"),
        ([], "must return a list of dicts"),
        ([{}, 3], "must return a list of dicts"),
        ([{"seed": 1}, {"seed": 1}], "cells 0 and 1 are the same"),
        ([{3: 4}], "cell 0: 3 is not a field; a field's name is a string"),
        ([{"modl.d_model": 4}], "config.modl.d_model is not a field"),
        (
            [{"data.text_field": "A"}, {"data.text_field": "a"}],
            "cells 0 and 1 are named alike, text_field=a",
        ),
        ([{"data.text_field": "a/b"}, {"data.text_field": "a b"}], "cells 0 and 1 are named alike"),
        ([{"data.text_field": "a\0b"}], "a string without the character NUL"),
    ],
)
def test_a_sweep_that_will_not_do_says_why(sweep, message):
    with pytest.raises(UserError, match=message):
        expand(DEFAULTS, sweep)


def test_names_that_would_leave_the_folder_or_be_too_long_stay_in_it():
    texts = ["../x", "/x", ".", "", "..", "é" * 300, "é" * 301]
    names = [cell.name for cell in expand(DEFAULTS, [{"data.text_field": t} for t in texts])]
    assert names[:5] == [f"text_field={t}" for t in ("..-x", "-x", ".", "", "..")]
    assert all(len(name.encode()) <= 200 for name in names) and len(set(names)) == 7


def test_a_section_shows_every_value_on_one_short_line():
    from bottleneck.sections import shown

    assert shown("a\nb") == r"'a\nb'" and shown(3) == "3"
    assert shown(Strange()) == "a Strange" and shown(10**5000) == "a int"
    assert len(shown("x" * 10_000)) == 200
    assert issubclass(Config, Section)
