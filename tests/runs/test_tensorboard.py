"""Event files, as TensorBoard itself reads them."""

import pytest
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from bottleneck.runs.tensorboard import TensorBoard


def events(folder):
    (path,) = folder.glob("events.out.tfevents.*")
    return list(LegacyEventFileLoader(str(path)).Load())


def test_scalars_are_read_back_after_a_flush(tmp_path):
    board = TensorBoard(tmp_path, 5)
    board.add(6, "train", {"loss": 0.1, "mfu": 0.5})
    board.flush()
    version, start, shown = events(tmp_path)
    board.close()
    assert version.file_version == "brain.Event:2"
    # What was written of later steps before this start is hidden.
    assert (start.step, start.session_log.status) == (6, start.session_log.START)
    found = {value.tag: value.simple_value for value in shown.summary.value}
    assert shown.step == 6
    assert found == {"train/loss": pytest.approx(0.1, rel=2**-24), "train/mfu": 0.5}


def test_a_full_disk_is_an_error_of_the_one_who_writes(tmp_path):
    board = TensorBoard(tmp_path, 0)
    board._writer._writer.close()
    board._writer._writer = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    with pytest.raises(OSError, match="No space left"):
        board.add(1, "train", {"loss": 1.0})
    board._writer._writer.close()
