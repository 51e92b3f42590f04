"""Signals, as they reach a program in the middle of a step: real ones, to real processes."""

import signal
import subprocess
import sys
import time

import pytest
from processes import HANGING

# Waits as long as it was told to, whatever signals come meanwhile.
PROGRAM = """
import sys, time
from bottleneck.signals import EXIT_CODES
from bottleneck.parallel.preemption import Notice
with Notice(lambda line: print(line, flush=True)) as notice:
    print("ready", flush=True)
    for _ in range(50):
        time.sleep(float(sys.argv[1]))
        if notice.has_come(1):
            print("saved", flush=True)
            sys.exit(EXIT_CODES[notice.signal])
"""


def start(step_seconds=0.1):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(step_seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [(signal.SIGTERM, 143, ""), (signal.SIGINT, 130, "saving after this step")],
)
def test_one_signal_lets_the_program_save(number, code, says):
    process = start()
    process.send_signal(number)
    output, _ = process.communicate(timeout=HANGING)
    assert process.returncode == code
    assert says in output and output.endswith("saved\n")


def test_a_second_ctrl_c_does_not_wait_for_the_device():
    process = start(step_seconds=2 * HANGING)
    process.send_signal(signal.SIGINT)
    # Two that come before the process is given a core are one to the kernel.
    assert "saving after this step" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=HANGING)
    assert process.returncode == 130
    assert "stopped at once" in output and "saved" not in output


def test_what_a_signal_did_before_it_does_again_afterwards():
    from bottleneck.parallel.preemption import Notice

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with Notice() as notice:
        assert not notice.has_come(1)
        signal.raise_signal(signal.SIGTERM)
        deadline = time.monotonic() + HANGING
        while not notice.has_come(1):
            assert time.monotonic() < deadline
    assert {number: signal.getsignal(number) for number in before} == before
