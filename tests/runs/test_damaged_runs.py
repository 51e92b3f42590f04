"""Whatever happens to the files of a run folder: read as written, or refused in one line."""

import json

import numpy as np
import pytest

from bottleneck.errors import UserError
from bottleneck.runs import load, load_all, table
from bottleneck.runs import metrics as metric_lines
from bottleneck.storage import json_files
from bottleneck.storage.arrays import read_arrays, write_arrays


def flips(content, every=1):
    """The bytes with each bit flipped in turn; with every=3 two or three bits of each byte."""
    for place in range(0, 8 * len(content), every):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        yield place // 8, bytes(flipped)


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


LINES = [
    (0, "eval", {"tokens": 0, "loss": 9.0106, "loss_se": 0.021}),
    (10, "train", {"tokens": 81920, "loss": 1e-05, "mfu": float("nan")}),
    (10, "eval", {"tokens": 81920, "loss": 5.25, "w_error/8": 1}),
]


def test_each_flip_in_the_metrics_gives_the_rows_or_names_file_and_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    content = "".join(metric_lines.written(*line) for line in LINES).encode()
    path.write_bytes(content)
    rows = repr(metric_lines.read(tmp_path))
    assert rows == repr([{"step": n, "split": split, **rest} for n, split, rest in LINES])
    for place, flipped in flips(content, every=3):
        path.write_bytes(flipped)
        if place == len(content) - 1:
            continue  # without its end the last line is one that a kill tore
        number = content[:place].count(b"\n") + 1
        with pytest.raises(UserError, match=rf"metrics\.jsonl, line {number} is damaged: ") as e:
            metric_lines.read(tmp_path)
        one_line(e)


def test_each_torn_end_of_the_metrics_loses_the_last_line_and_no_other(tmp_path):
    path = tmp_path / "metrics.jsonl"
    *first, last = [metric_lines.written(*line).encode() for line in LINES]
    for end in range(len(last) + 1):
        path.write_bytes(b"".join(first) + last[:end])
        assert len(metric_lines.read(tmp_path)) == 2 + (end >= len(last) - 1)


def test_a_bucket_s_parts_are_checked_like_one_file(tmp_path):
    parts = [tmp_path / f"metrics-{i:05}.jsonl" for i in range(3)]
    for part, line in zip(parts, LINES, strict=True):
        part.write_text(metric_lines.written(*line))
    assert [row["step"] for row in metric_lines.read(tmp_path)] == [0, 10, 10]
    parts[1].write_text(parts[1].read_text().replace("81920", "81921"))
    with pytest.raises(UserError, match=r"metrics-00001\.jsonl, line 1 is damaged: its checksum"):
        metric_lines.read(tmp_path)
    parts[1].write_text(metric_lines.written(*LINES[1])[:-9])  # a part is never torn but the last
    with pytest.raises(UserError, match=r"metrics-00001\.jsonl, line 1 is damaged"):
        metric_lines.read(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        b'{"step": "5", "split": "train", "loss": 1.0}',
        b'{"step": true, "split": "train", "loss": 1.0}',
        b'{"step": 5.0, "split": "train", "loss": 1.0}',
        b'{"step": -1, "split": "train", "loss": 1.0}',
        b'{"step": 1' + 30 * b"0" + b', "split": "train", "loss": 1.0}',
        b'{"step": 5, "split": 3, "loss": 1.0}',
        b'{"step": 5, "split": "train", "loss": "1.0"}',
        b'{"step": 5, "split": "train", "loss": null}',
        b'{"step": 5, "split": "train", "loss": [1.0]}',
        b'{"step": 5, "split": "train", "tokens": 1' + 400 * b"0" + b"}",
        b'{"step": 5, "split": "train", "tokens": 1' + 5000 * b"0" + b"}",
        b'{"split": "train", "loss": 1.0}',
        b"[5]",
        b"null",
        b"",
        100_000 * b"[",
        bytes(range(11, 256)),
        1000 * b"\0",
        '{"step": 5, "split": "trän"}'.encode("latin-1"),
    ],
)
def test_a_line_of_another_shape_is_named(make_run, line):
    folder = make_run(steps=20)
    path = folder / "metrics.jsonl"
    number = path.read_bytes().count(b"\n") + 1
    with path.open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(UserError, match=rf"metrics\.jsonl, line {number} is damaged") as error:
        load(folder)
    assert len(one_line(error)) < 500


def test_a_loss_that_was_not_finite_is_what_was_measured(make_run):
    folder = make_run(steps=20)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(metric_lines.written(30, "train", {"tokens": 1, "loss": float("nan")}))
        file.write(metric_lines.written(40, "train", {"tokens": 1, "loss": float("inf")}))
    run = load(folder)
    assert np.isnan(run.series("train", "loss")[0][-2])
    assert "crc32" not in run.metrics.columns


def test_each_flip_in_the_config_of_a_run_gives_what_was_written_or_one_line(make_run):
    folder = make_run(steps=20)
    path = folder / "config.json"
    record = json.loads(path.read_text())
    json_files.write(path, record)
    content = path.read_bytes()
    assert load(folder).n_params == record["parameters"]["total"]
    for place, flipped in flips(content, every=7):
        try:
            found = json_files.loads(flipped)
        except ValueError as error:
            assert "\n" not in str(error)
        else:
            # What was hit is the key of the seal, or the line end.
            assert place >= len(content) - 24
            assert {name: found[name] for name in record} == record
    path.write_bytes(content.replace(b'"d_model": 64', b'"d_model": 68'))
    with pytest.raises(UserError, match=r"config\.json is damaged: its checksum does not fit"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("config", None),
        ("config", [1]),
        ("config", {"model": 5}),
        ("config", {"model": {"d_model": "wide"}}),
        ("config", {"model": {"norm": []}}),
        ("config", {"seed": float("nan")}),
        ("parameters", {"total": 3}),
        ("parameters", {"total": "3", "non_embedding": 3}),
        ("parameters", [3]),
        ("parameters", 7),
        ("corpus", {}),
        ("corpus", 5),
        ("corpus", ["digest"]),
        ("corpus", {"digest": 1, "train_tokens": "x"}),
        ("versions", None),
        ("versions", ["jax"]),
        ("mesh", {"fsdp": "two"}),
        ("mesh", "fsdp"),
        ("git_revision", 3),
        ("series", 3),
    ],
)
def test_a_config_of_another_shape_is_named(make_run, name, value):
    folder = make_run(steps=20)
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(record | {name: value}))
    with pytest.raises(UserError, match=r"config\.json is not one that a run writes: ") as error:
        load(folder)
    one_line(error)
    if name == "series":
        return
    del record[name]
    (folder / "config.json").write_text(json.dumps(record))
    if name != "config":
        with pytest.raises(UserError, match=rf"config\.json is not .*: it has no '{name}'"):
            load(folder)


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 50, b"\xff\xfe{}", b'"config"', b"{" * 100_000, b"[" * 100_000]
)
def test_a_config_that_is_none_is_named(make_run, content):
    folder = make_run(steps=20)
    (folder / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json is damaged: ") as error:
        load(folder)
    one_line(error)


ARRAYS = {"singular_values": np.linspace(3, 1, 12), "first_bounded_index": np.asarray(3)}


def test_each_flip_in_a_probe_gives_its_arrays_or_names_the_file(tmp_path):
    path = tmp_path / "00000010.npz"
    write_arrays(path, ARRAYS)
    content = path.read_bytes()
    for _, flipped in flips(content, every=3):
        path.write_bytes(flipped)
        try:
            found = read_arrays(path)
        except UserError as error:
            assert "00000010.npz" in str(error) and "\n" not in str(error)
            continue
        # What was hit says when and by what an array was packed.
        assert found.keys() == ARRAYS.keys()
        for name, array in ARRAYS.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)


def test_a_probe_cut_anywhere_is_named(tmp_path):
    path = tmp_path / "00000010.npz"
    write_arrays(path, ARRAYS)
    content = path.read_bytes()
    for end in range(len(content)):
        path.write_bytes(content[:end])
        with pytest.raises(UserError, match=r"00000010\.npz is not a whole \.npz file") as error:
            read_arrays(path)
        one_line(error)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("it was unpickled",))


def test_python_objects_are_never_loaded(make_run):
    folder = make_run(steps=100)
    path = folder / "probes" / "00000100.npz"
    np.savez(path, singular_values=np.array([Bomb()], object))
    with pytest.raises(UserError, match=r"00000100\.npz is not a whole \.npz .*allow_pickle"):
        load(folder).probe()


def test_a_file_that_is_no_probe_is_named_with_what_it_lacks(make_run):
    folder = make_run(steps=100)
    path = folder / "probes" / "00000100.npz"
    np.savez(path, ranks=np.arange(3))
    with pytest.raises(UserError, match=r"00000100\.npz is no probe: it has no singular_values"):
        load(folder).probe()


def test_foreign_names_among_checkpoints_and_probes_are_no_steps(make_run):
    folder = make_run(steps=100, probe_every=50)
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir()
    for name in ("200", "0200", "٣", "7.orbax-checkpoint-tmp", "notes", "9" * 200, "-4"):
        (checkpoints / name).mkdir()
    for name in ("5.npz", "00000007.npz.draft", "٣.npz", "old.npz"):
        (folder / "probes" / name).touch()
    run = load(folder)
    assert run.steps == [200] and run.probe_steps == [0, 50, 100]
    with pytest.raises(UserError, match="the checkpoint of step 200 is damaged: ") as error:
        run.params()
    one_line(error)


def test_a_checkpoints_folder_that_is_a_file_holds_none(make_run):
    folder = make_run(steps=100)
    (folder / "checkpoints").write_text("")
    with pytest.raises(UserError, match="has no checkpoint yet"):
        load(folder).params()


def test_a_damaged_run_is_not_left_out_of_a_sweep_in_silence(make_run, tmp_path):
    make_run("one", steps=50)
    damaged = make_run("two", steps=50)
    (make_run("begun", steps=50) / "metrics.jsonl").unlink()
    assert set(table(tmp_path)["run"]) == {"one", "two"}
    (damaged / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"two/metrics\.jsonl, line 1 is damaged"):
        table(tmp_path)
    runs, problems = load_all([tmp_path])
    assert [run.name for run in runs] == ["one"] and len(problems) == 2
