"""The train step against PyTorch's: tokens a second of the same model, in turns on this machine.

python benchmarks/train_step.py

Ours and the peer, eager and compiled, each live in a process of their own, with as many threads,
and take turns: a few steps each, again and again, while the others wait. What counts is the ratio
within a turn, so that a machine that slows down slows all of them. Needs torch and, for
torch.compile, g++. Prints a table and writes results/train_step.json beside this file.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "train_step.json"
CONTESTANTS = ("ours", "eager", "compiled")


@dataclass(frozen=True)
class Case:
    """A model at a size, and the batch that it is trained on."""

    config_file: str  # as --config takes it
    batch_size: int
    length: int
    rank: int | None = None

    @property
    def name(self) -> str:
        model = self.config_file.removeprefix("configs/").replace(".py", "").replace(":", "-")
        head = "full" if self.rank is None else f"R={self.rank}"
        return f"{model}, {self.batch_size} × {self.length}, {head}"


CASES = (
    Case("configs/nano.py", 16, 128),
    Case("configs/nano.py", 16, 128, rank=32),
    Case("configs/pythia.py:14m", 4, 512),
    Case("configs/pythia.py:14m", 4, 512, rank=32),
    Case("configs/pythia.py:31m", 4, 512),
    Case("configs/pythia.py:31m", 4, 512, rank=64),
)


def load(case: Case, device: str) -> Any:
    """The validated config of a case: float32 on the CPU, bfloat16 on CUDA, no recomputation."""
    from bottleneck.commands.flags import load_config

    config = load_config(case.config_file, {})
    dtype = "float32" if device == "cpu" else "bfloat16"
    return dataclasses.replace(
        config,
        model=dataclasses.replace(
            config.model, compute_dtype=dtype, remat="none", head_rank=case.rank
        ),
        train=dataclasses.replace(
            config.train, batch_size=case.batch_size, sequence_length=case.length
        ),
    )


def tokens(config: Any) -> tuple[Any, Any]:
    """Inputs and targets, int32 [B, L]."""
    import numpy as np

    shape = (config.train.batch_size, config.train.sequence_length + 1)
    windows = np.random.default_rng(0).integers(0, config.model.vocab_size, shape, np.int32)
    return windows[:, :-1].copy(), windows[:, 1:].copy()


def our_steps(config: Any) -> Callable[[int], float]:
    """n → the seconds that n steps took."""
    from bottleneck.parallel.host_memory import keep_freed_memory

    keep_freed_memory()  # as `python -m bottleneck train` does
    import jax
    import jax.numpy as jnp

    from bottleneck.parallel.mesh import make_mesh
    from bottleneck.training.step import make_train_program

    mesh = make_mesh(config.mesh, jax.devices()[:1])
    inputs, targets = tokens(config)
    with jax.set_mesh(mesh):
        program = make_train_program(config, mesh)
        step = program.compile(*inputs.shape)
        state = program.init()
        batch = dict(inputs=inputs, targets=targets, weights=jnp.ones(inputs.shape))
        batch = jax.device_put(batch, step.input_shardings[0][2])

    def run(n: int) -> float:
        nonlocal state
        start = time.perf_counter()
        for _ in range(n):
            *state, metrics = step(*state, batch)
        jax.block_until_ready((state, metrics))
        return time.perf_counter() - start

    return run


def peer_steps(config: Any, device: str, *, compiled: bool) -> Callable[[int], float]:
    """n → the seconds that n steps took."""
    import peers
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    model = peers.GPTNeoX(config.model, config.train.sequence_length)
    step = peers.make_step(config, model, compiled=compiled, device=device)
    batch = [torch.from_numpy(array).long().to(device) for array in tokens(config)]

    def run(n: int) -> float:
        start = time.perf_counter()
        for _ in range(n):
            loss = step(*batch)
        float(loss)
        return time.perf_counter() - start

    return run


def peak_memory() -> int | None:
    """The most bytes that this process has held since the last call; None where it is not told."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def serve(name: str, case: Case, device: str) -> None:
    """Reads a number of steps a line, takes them, and prints the seconds; at the end the memory."""
    config = load(case, device)
    start = time.perf_counter()
    run = (
        our_steps(config)
        if name == "ours"
        else peer_steps(config, device, compiled=name == "compiled")
    )
    run(1)
    facts = {"start": time.perf_counter() - start}
    if name == "ours":
        import jax

        from bottleneck.parallel.chips import peak_flops

        facts["peak_flops"] = peak_flops(jax.devices()[0])
    print(json.dumps(facts), flush=True)
    peak_memory()
    for line in sys.stdin:
        cores = time.process_time()
        seconds = run(int(line))
        answer = {"seconds": seconds, "cpu": time.process_time() - cores, "memory": peak_memory()}
        print(json.dumps(answer), flush=True)


class Contestant:
    """A process that takes steps when told."""

    def __init__(self, name: str, case: Case, device: str, python: str):
        command = [python, __file__, "--serve", name, json.dumps(vars(case)), "--device", device]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.name = name
        self.facts = self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with {self.process.wait()}")
        return json.loads(line)

    def run(self, n: int) -> dict[str, Any]:
        print(n, file=self.process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(
    case: Case, names: list[str], device: str, turns: int, seconds: float
) -> dict[str, Any]:
    """What each contestant did, and our speed over each peer's: median and range over the turns."""
    from bottleneck.model.accounting import flops_per_token

    players = [Contestant(name, case, device, sys.executable) for name in names]
    config = load(case, device)
    n_tokens = config.tokens_per_step
    counts, answers = {}, {name: [] for name in names}
    for player in players:
        one = player.run(1)["seconds"]
        counts[player.name] = max(1, round(seconds / one))
    for turn in range(turns):
        for player in players if turn % 2 == 0 else players[::-1]:
            answers[player.name].append(player.run(counts[player.name]))
    for player in players:
        player.close()
    rates = {
        name: [n_tokens * counts[name] / one["seconds"] for one in answers[name]] for name in names
    }
    peak = max(player.facts.get("peak_flops", 0.0) for player in players)
    of_token = flops_per_token(config.model, case.length).training(causal_halved=True)
    result: dict[str, Any] = {"case": vars(case), "peak_flops": peak, "contestants": {}}
    for player in players:
        memories = [one["memory"] for one in answers[player.name] if one["memory"]]
        result["contestants"][player.name] = {
            "tokens_per_second": statistics.median(rates[player.name]),
            "range": [min(rates[player.name]), max(rates[player.name])],
            "cpu_seconds": statistics.median(
                one["cpu"] / counts[player.name] for one in answers[player.name]
            ),
            "mfu": statistics.median(rates[player.name]) * of_token / peak if peak else None,
            "start_seconds": player.facts["start"],
            "peak_memory": max(memories, default=None),
        }
        if player.name != "ours" and "ours" in rates:
            ratios = [a / b for a, b in zip(rates["ours"], rates[player.name], strict=True)]
            result["contestants"][player.name]["ours_over_this"] = {
                "median": statistics.median(ratios),
                "range": [min(ratios), max(ratios)],
            }
    return result


def write(results: list[dict[str, Any]]) -> None:
    """Puts the results into their file, in place of older ones of the same cases."""
    old = json.loads(RESULTS.read_text())["results"] if RESULTS.exists() else []
    measured = [result["case"] for result in results]
    names = ("jax", "jaxlib", "torch")
    text = {
        "date": datetime.date.today().isoformat(),
        "versions": {name: importlib.metadata.version(name) for name in names},
        "threads": len(os.sched_getaffinity(0)),
        "results": [one for one in old if one["case"] not in measured] + results,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(text, indent=1) + "\n")


def _row(result: dict[str, Any]) -> str:
    cells = [Case(**result["case"]).name]
    for entry in result["contestants"].values():
        cell = f"{entry['tokens_per_second']:,.0f}"
        if "ours_over_this" in entry:
            ratio = entry["ours_over_this"]
            cell += f" ({ratio['median']:.2f}, {ratio['range'][0]:.2f}–{ratio['range'][1]:.2f})"
        cell += f", MFU {entry['mfu']:.0%}" if entry["mfu"] else ""
        cell += f", {entry['cpu_seconds']:.3f} cpu s"
        memory = entry["peak_memory"]
        cell += f", {memory / 1e9:.2f} GB" if memory else ""
        cells.append(cell + f", {entry['start_seconds']:.0f} s")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Prints a row a case: a contestant's tokens a second, (ours over it: median, range), MFU with
    causal attention halved, processor seconds of a step, all threads added up, peak memory, and
    seconds until its first step was done.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serve", nargs=2, metavar=("NAME", "CASE"), help=argparse.SUPPRESS)
    parser.add_argument("--only", default="", metavar="TEXT", help="cases with this in their name")
    parser.add_argument("--contestants", default=",".join(CONTESTANTS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each contestant's turn")
    arguments = parser.parse_args()
    if arguments.serve:
        name, case = arguments.serve
        serve(name, Case(**json.loads(case)), arguments.device)
        return
    results = []
    for case in CASES:
        if arguments.only in case.name:
            names = arguments.contestants.split(",")
            result = compare(case, names, arguments.device, arguments.turns, arguments.seconds)
            results.append(result)
            print(_row(result), flush=True)
            write(results)


if __name__ == "__main__":
    main()
