"""metrics.jsonl stays readable whatever happens to the process that writes it."""

import json
import zlib

from bottleneck.runs.metrics_writer import MetricsWriter


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_write_is_a_whole_line_at_once(tmp_path):
    writer = MetricsWriter(tmp_path, 0)
    writer.write(3, "train", {"loss": 0.1 + 0.2})
    plain = '{"step": 3, "split": "train", "loss": 0.30000000000000004}'
    crc = f', "crc32": "{zlib.crc32(plain.encode()):08x}"}}\n'
    assert (tmp_path / "metrics.jsonl").read_text() == plain[:-1] + crc
    writer.close()


def test_steps_in_any_order_are_written_but_not_shown_to_tensorboard(tmp_path):
    for start, folder in ((None, tmp_path / "any"), (0, tmp_path / "run")):
        folder.mkdir()
        writer = MetricsWriter(folder, start)
        writer.write(7, "eval", {"loss": 1.0})
        writer.close()
        assert [line["step"] for line in lines(folder / "metrics.jsonl")] == [7]
        assert (folder / "tensorboard").exists() == (start is not None)


def test_a_line_that_a_kill_tore_is_dropped_and_the_rest_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "split": "train"}\n{"step": 2, "spl')
    writer = MetricsWriter(tmp_path, 1)
    writer.write(2, "train", {})
    writer.close()
    assert [line["step"] for line in lines(path)] == [1, 2]
