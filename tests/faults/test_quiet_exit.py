"""SIGINT and SIGTERM at any moment from the first instruction: an exit code and one line."""

import signal
import time
from pathlib import Path

import numpy as np
import pytest
from processes import HANGING, await_moment

from bottleneck.signals import EXIT_CODES

SECONDS = 6.0  # imports, data and compilation, the first steps

LINES = {signal.SIGINT: "stopped by Ctrl-C", signal.SIGTERM: "stopped by SIGTERM"}
# What a training says that saves first.
SAVES = "{}: saved step "


def takes(process, number):
    """Whether the process has a handler for a signal; before that it is not ours but Python's."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def await_first_instruction(process):
    await_moment(lambda: takes(process, signal.SIGTERM), process)


def check_is_quiet(output, number, code):
    assert code in (0, EXIT_CODES[number]), (code, output)
    for noise in ("Traceback", "Exception ignored", "Error"):
        assert noise not in output, output
    lines = output.splitlines()
    said = [line for line in lines if line in LINES.values() or "saved step" in line]
    if code == 0:
        assert said == [], output
    else:
        assert said == lines[-1:], output
        assert said[0] == LINES[number] or said[0].startswith(SAVES.format(number.name)), output


@pytest.fixture
def programs(lab, undisturbed):
    """Verb → what makes its program and folder."""
    tokens = lab.folder / "few_tokens.npy"
    if not tokens.exists():
        np.save(tokens, (np.random.default_rng(0).zipf(1.4, 1_000_000) % 60).astype(np.uint16))
    table = lab.folder / "points.csv"
    if not table.exists():
        sizes = [(n * 1e7, t * 1e9) for n in (1, 2, 4, 8) for t in (1, 2, 4, 8)]
        rows = [f"{n},{t},{1.7 + 400 / n**0.34 + 410 / t**0.28}" for n, t in sizes]
        table.write_text("\n".join(["n_params,n_tokens,loss", *rows]))
    at = "{folder}"
    return {
        "train": lab.training(),
        "prepare": lab.program(
            "prepare", f"--config={lab.config}", f"--config.data.cache_dir={at}"
        ),
        "ngrams": lab.program(
            *("ngrams", f"--ids={tokens}", f"--output={at}", "--n=3", "--memory=1.2")
        ),
        "fit": lab.program("fit", f"--table={table}", f"--output={at}"),
        "analyze": lab.program("analyze", str(undisturbed), f"--output={at}"),
    }


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for its handlers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("verb", ["train", "prepare", "ngrams", "fit", "analyze"])
def test_a_signal_at_any_moment(faults, programs, verb, number, tmp_path):
    program = programs[verb]
    source = faults.source()
    delays = [SECONDS * source.random() for _ in range(20)]

    def trial(index):
        process = program.start(tmp_path / f"{index}")
        try:
            await_first_instruction(process)
            time.sleep(delays[index])
            process.send_signal(number)
            output, _ = process.communicate(timeout=HANGING)
        finally:
            process.kill()
        check_is_quiet(output, number, process.returncode)

    fault = f"{number.name} in the first six seconds of `{verb}`"
    claim = f"ends with {EXIT_CODES[number]} and one line, or had ended"
    faults.run_trials(fault, claim, trial, full=20, quick=int(verb == "train"))
