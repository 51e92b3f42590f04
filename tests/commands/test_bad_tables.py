"""Tables of points and files of token ids as people and programs leave them."""

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bottleneck.commands.ngrams import _stored
from bottleneck.errors import UserError
from bottleneck.laws.points import from_table

HEADER = "n_params,n_tokens,loss\n"


def one_line(error):
    assert "\n" not in str(error)
    return str(error)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", b"", "cannot be read: empty"),
        ("blank.csv", b"\n\n", "points|column|cannot be read"),
        ("rubbish.csv", bytes(range(256)), "cannot be read|no column"),
        ("latin.csv", HEADER.encode() + "1,2,ü\n".encode("latin-1"), "cannot be read|not a number"),
        ("rows.csv", b"n_params,n_tokens,loss\n1,2\n3,4,5,6\n", "cannot be read|is empty in row 1"),
        (
            "words.csv",
            HEADER.encode() + b"1e6,1e9,high\n",
            "loss holds a value that is not a number",
        ),
        ("nan.csv", HEADER.encode() + b"1e6,1e9,2\n1e6,1e9,nan\n", "loss is nan in row 2; it must"),
        (
            "inf.csv",
            HEADER.encode() + b"1e6,1e9,inf\n",
            "loss is inf in row 1; it must be a finite",
        ),
        ("huge.csv", HEADER.encode() + b"1e6,1e400,2\n", "n_tokens is inf in row 1"),
        ("zero.csv", HEADER.encode() + b"0,1e9,2\n", "n_params is 0 in row 1"),
        ("negative.csv", HEADER.encode() + b"1e6,-1,2\n", "n_tokens is -1 in row 1"),
        ("no_n.csv", b"flops,n_params,loss\n1e18,0,2\n", "n_params is 0 in row 1"),
        ("flops.csv", b"flops,n_params,loss\n-1,1e6,2\n", "flops is -1 in row 1"),
        ("n.csv", b"n_params;n_tokens;loss\n1;2;3\n", "has no column n_params"),
        ("empty.json", b"", "cannot be read"),
        ("number.json", b"5", "cannot be read|no column|no rows"),
        ("null.json", b"null", "cannot be read|no rows"),
        ("text.json", b'"n_params"', "cannot be read|no column"),
        ("deep.json", b"[" * 100_000, "cannot be read"),
        ("nested.json", b'[{"n_params": {"a": 1}, "n_tokens": 1, "loss": 2}]', "not a number"),
        ("lists.json", b'{"n_params": [1, 2], "n_tokens": [1], "loss": [2]}', "cannot be read"),
        ("mixed.json", b'[{"n_params": 1, "n_tokens": "x", "loss": 2}]', "not a number"),
        ("big.json", b'[{"n_params": 1' + b"0" * 5000 + b"}]", "cannot be read"),
        ("empty.jsonl", b"", "cannot be read|no rows"),
        ("torn.jsonl", b'{"n_params": 1, "n_tok', "cannot be read"),
        ("points.txt", b"1", "must end in .csv"),
    ],
)
def test_a_table_that_will_not_do_is_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        from_table(path)
    assert len(one_line(error.value)) < 500


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path):
    plain, windows = tmp_path / "plain.csv", tmp_path / "windows.csv"
    text = HEADER + "1e6,1e9,3.5\n2e6,1e9,3.25\n"
    plain.write_bytes(text.encode())
    windows.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    as_json = tmp_path / "windows.json"
    rows = {"n_params": [1e6, 2e6], "n_tokens": [1e9, 1e9], "loss": [3.5, 3.25]}
    as_json.write_bytes(b"\xef\xbb\xbf" + json.dumps(rows).encode())
    for path in (windows, as_json):
        for name in ("n_params", "n_tokens", "loss"):
            found, expected = (getattr(from_table(p), name) for p in (path, plain))
            np.testing.assert_array_equal(found, expected)


def test_more_points_than_a_fit_can_take_are_refused_at_once(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text(HEADER + 1_000_000 * "1e6,1e9,3.5\n")
    with pytest.raises(UserError, match="1,000,000 rows; a law is fitted to at most 5,000 points"):
        from_table(path)


@given(
    st.binary(max_size=60) | st.text().map(lambda text: (HEADER + text).encode("utf-8", "replace"))
)
def test_any_bytes_are_points_or_one_line(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp()
    for suffix in ("csv", "tsv", "json", "jsonl"):
        path = folder / f"any.{suffix}"
        path.write_bytes(content)
        try:
            points = from_table(path)
        except UserError as error:
            one_line(error)
        else:
            assert np.isfinite(points.loss).all() and (points.loss > 0).all()


def npy(array, **options):
    content = io.BytesIO()
    np.save(content, array, **options)
    return content.getvalue()


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("it was unpickled",))


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"1 2 3\n",
        npy(np.ones(4)),
        npy(np.ones((2, 2), np.int32)),
        npy(np.asarray(3)),
        npy(np.array(["a", "b"])),
        npy(np.array([1 + 2j])),
        npy(np.array([True])),
        npy(np.zeros(3, [("a", "<i4")])),
        npy(np.array([Bomb()], object), allow_pickle=True),
        npy(np.arange(1000))[:500],
    ],
)
def test_a_file_of_no_token_ids_is_one_line(tmp_path, content):
    path = tmp_path / "tokens.npy"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"--ids=.*tokens\.npy (is not|must be)") as error:
        _stored(path)
    one_line(error.value)


def test_an_archive_of_arrays_is_no_file_of_token_ids(tmp_path):
    np.savez(tmp_path / "tokens.npz", ids=np.arange(5))
    with pytest.raises(UserError, match="must be a one-dimensional array"):
        _stored(tmp_path / "tokens.npz")


def test_each_flip_in_the_header_of_a_file_of_ids_gives_integers_or_one_line(tmp_path):
    path = tmp_path / "tokens.npy"
    content = npy(np.arange(100, dtype=np.uint16))
    for place in range(8 * 128):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            tokens, _ = _stored(path)
        except UserError as error:
            one_line(error)
        else:
            assert tokens.ndim == 1 and tokens.dtype.kind in "iu"
