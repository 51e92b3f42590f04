import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from bottleneck.errors import UserError
from bottleneck.runs.reading import find_runs, load, load_all
from bottleneck.runs.seals import seal

SAVE_ON_FOUR_DEVICES = """
    import sys
    import jax, jax.numpy as jnp, numpy as np, orbax.checkpoint as ocp
    from jax.sharding import NamedSharding, PartitionSpec as P

    assert jax.device_count() == 4
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 2), ("fsdp", "tensor"))

    def put(array, *axes):
        return jax.device_put(array, NamedSharding(mesh, P(*axes)))

    with ocp.CheckpointManager(sys.argv[1]) as manager:
        for step in (100, 200):
            rows = np.arange(64, dtype=np.float32).reshape(16, 4) * step
            params = {
                "head": {"rows": put(rows, "tensor", "fsdp"), "basis": put(rows.T, "fsdp")},
                "norm": {"scale": put(jnp.full(4, step, jnp.bfloat16))},
            }
            items = ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                opt_state=ocp.args.StandardSave({"mu": params, "count": put(np.int32(step))}),
                meta=ocp.args.JsonSave({"step": step}),
            )
            manager.save(step, args=items)
"""


def append(run_folder, *lines):
    with (run_folder / "metrics.jsonl").open("a") as file:
        file.writelines(lines)


def line(**fields):
    return json.dumps(fields) + "\n"


def test_metrics_have_one_row_per_step_and_split_in_order(make_run):
    metrics = load(make_run(steps=100, probe_every=50)).metrics
    keys = metrics.select("step", "split").rows()
    assert keys == sorted(set(keys))
    assert {s for s, split in keys if split == "probe"} == {0, 50, 100}
    assert {s for s, split in keys if split == "train"} == set(range(10, 101, 10))


def test_last_line_of_a_step_and_split_wins(make_run):
    folder = make_run(steps=100)
    append(folder, line(step=60, split="train", tokens=1, loss=7.25))
    steps, losses = load(folder).series("train", "step", "loss")
    assert losses[steps == 60] == [7.25]


def test_torn_last_line_is_ignored(make_run):
    folder = make_run(steps=100)
    before = load(folder).metrics
    append(folder, '{"step": 110, "split": "tr')
    assert load(folder).metrics.equals(before)


@pytest.mark.parametrize("broken", ['{"step": 5, "spl\n', '{"loss": 3.0}\n', "7\n"])
def test_malformed_middle_line_names_file_and_line(make_run, broken):
    folder = make_run(steps=100)
    number = len((folder / "metrics.jsonl").read_text().splitlines()) + 1
    append(folder, broken, line(step=120, split="train", tokens=1, loss=1.0))
    with pytest.raises(UserError, match=rf"metrics\.jsonl, line {number} "):
        load(folder)


def test_losses_written_as_integers_are_read_as_floats(make_run):
    folder = make_run(steps=100)
    (folder / "metrics.jsonl").write_text(
        line(step=1, split="train", tokens=10, loss=3)
        + line(step=2, split="train", tokens=20, loss=2.5)
    )
    run = load(folder)
    assert run.metrics["loss"].to_list() == [3.0, 2.5]
    assert run.metrics["tokens"].to_list() == [10, 20]


def test_a_series_that_was_never_measured_is_empty(make_run):
    run = load(make_run(steps=100))
    assert [len(column) for column in run.series("eval", "step", "accuracy")] == [0, 0]
    assert [len(column) for column in run.series("nothing", "step", "loss")] == [0, 0]


def test_run_tells_its_config_counts_and_state(make_run):
    run = load(make_run("rank8", d_model=64, head_rank=8, stop=100))
    assert (run.name, run.head_rank, run.is_full_rank, run.is_complete) == (
        "rank8",
        8,
        False,
        False,
    )
    assert run.config.model.d_model == 64
    assert run.n_params == 8192 * 64 + 4 * 12 * 64**2 + 8 * (8192 + 64)
    assert run.corpus.unigram_entropy == 6.8412
    full = load(make_run("full", d_model=64))
    assert (full.head_rank, full.is_full_rank, full.is_complete) == (64, True, True)


def test_probe_gives_the_arrays_of_a_step_and_by_default_the_last(make_run):
    folder = make_run(steps=100, probe_every=50)
    run = load(folder)
    assert run.probe_steps == [0, 50, 100]
    for step, expected in ((50, 50), (None, 100)):
        with np.load(folder / "probes" / f"{expected:08d}.npz") as arrays:
            probe = run.probe(step).arrays()
            assert probe.keys() == set(arrays.files)
            assert all(np.array_equal(probe[key], arrays[key]) for key in arrays.files)
    with pytest.raises(UserError, match="no probe of step 60; it has those of 0, 50, 100"):
        run.probe(60)


def test_a_probe_or_checkpoint_is_found_by_the_name_that_its_step_gives_it(make_run):
    folder = make_run()
    for name in ("7.npz", "0000000٣.npz", "²²²²²²²².npz", "00000200.npz.draft", "a.npz"):
        (folder / "probes" / name).touch()
    for name in ("7", "007", "٣", "²", "x"):
        (folder / "checkpoints" / name).mkdir(parents=True)
    run = load(folder)
    assert run.probe_steps == [0, 50, 100, 150, 200, 250, 300, 350, 400]
    assert run.steps == [7]


def test_probe_that_is_not_whole_is_named(make_run):
    folder = make_run(steps=100)
    path = folder / "probes" / "00000100.npz"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=r"00000100\.npz is not a whole"):
        load(folder).probe()


def test_folders_that_are_no_runs_are_refused_in_one_line(make_run, tmp_path):
    with pytest.raises(UserError, match=r"is not a run folder: it has no config\.json"):
        load(tmp_path)
    folder = make_run(steps=100)
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="has no metrics yet"):
        load(folder)
    (folder / "metrics.jsonl").write_text('{"step": 0, "sp')
    with pytest.raises(UserError, match="has no metrics yet"):
        load(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"config": {"model": {"width": 3}}}'])
def test_config_that_no_run_wrote_is_named(make_run, content):
    folder = make_run(steps=100)
    (folder / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json is (not|damaged)") as raised:
        load(folder)
    assert "\n" not in str(raised.value)


def test_params_saved_on_four_devices_come_back_equal_on_one(make_run):
    folder = make_run(steps=200)
    script = textwrap.dedent(SAVE_ON_FOUR_DEVICES)
    subprocess.run(
        [sys.executable, "-c", script, str(folder / "checkpoints")],
        check=True,
        capture_output=True,
        env={"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"},
    )
    for step in (100, 200):
        seal(folder / "checkpoints" / str(step) / "params")
    run = load(folder)
    assert run.steps == [100, 200]
    for step, expected in ((100, 100), (None, 200)):
        params = run.params(step)
        rows = np.arange(64, dtype=np.float32).reshape(16, 4) * expected
        np.testing.assert_array_equal(params["head"]["rows"], rows)
        np.testing.assert_array_equal(params["head"]["basis"], rows.T)
        assert params["norm"]["scale"].dtype == "bfloat16"
        assert params["norm"]["scale"].tolist() == [expected] * 4
        assert len(params["head"]["rows"].devices()) == 1
    with pytest.raises(UserError, match="no checkpoint of step 150; it has those of 100, 200"):
        run.params(150)


def test_params_of_a_run_without_checkpoints_are_refused(make_run):
    with pytest.raises(UserError, match="has no checkpoint yet"):
        load(make_run(steps=100)).params()


READ_AND_DRAW = """
    import sys
    from pathlib import Path
    from bottleneck import report, runs

    folder = Path(sys.argv[1])
    found, _ = runs.load_all([folder])
    for run in found:
        assert len(run.series("eval", "loss")[0]) and run.probe().plain.gap.size
    assert runs.table(folder).height
    report.summary_table(found)
    assert report.figures.loss(found).axes
    assert {path.suffix for path in report.write_report(found, folder).parent.glob("figures/*")}
    assert "jax" not in sys.modules
"""


def test_runs_are_read_and_reports_drawn_without_jax(make_run, tmp_path):
    for rank in (2, 8):
        make_run(f"rank{rank}", head_rank=rank, steps=100, language_rank=4)
    program = [sys.executable, "-c", textwrap.dedent(READ_AND_DRAW), str(tmp_path)]
    subprocess.run(program, check=True)


def test_runs_are_found_in_folders_each_once(make_run, tmp_path):
    first, second = make_run("sweep/a", steps=50), make_run("sweep/b", steps=50)
    (tmp_path / "sweep" / "report").mkdir()
    assert find_runs([tmp_path / "sweep"]) == [first, second]
    assert find_runs([second, tmp_path / "sweep", first / ".." / "b"]) == [second, first]
    with pytest.raises(UserError, match="neither a run folder nor a folder of run folders"):
        find_runs([tmp_path / "sweep" / "report"])
    with pytest.raises(UserError, match="is not a folder"):
        find_runs([tmp_path / "absent"])


def test_runs_come_by_width_then_rank_and_are_named_apart(make_run, tmp_path):
    make_run("one/full", d_model=64, steps=50)
    make_run("one/low", d_model=64, head_rank=8, steps=50)
    runs, problems = load_all([tmp_path / "one"])
    assert ([run.name for run in runs], problems) == (["low", "full"], [])
    make_run("two/full", d_model=32, steps=50)
    runs, _ = load_all([tmp_path / "one", tmp_path / "two"])
    assert [run.name for run in runs] == ["two/full", "one/low", "one/full"]


def test_a_run_that_cannot_be_read_does_not_hide_the_others(make_run, tmp_path):
    make_run("good", steps=50)
    (make_run("begun", steps=50) / "metrics.jsonl").unlink()
    runs, problems = load_all([tmp_path])
    assert [run.name for run in runs] == ["good"]
    assert len(problems) == 1 and "begun has no metrics yet" in problems[0]
    with pytest.raises(UserError, match="begun has no metrics yet"):
        load_all([tmp_path / "begun"])
