"""The train step against PyTorch's: tokens a second of the same model, in turns on this machine.

python benchmarks/train_step.py

Ours and the peer, eager and compiled, each live in a process of their own, with as many threads,
and take turns: a few steps each, again and again, while the others wait. What counts is the ratio
within a turn, so that a machine that slows down slows all of them. On a CPU all of them keep the
memory that they free. Needs torch and, for torch.compile, g++.
"""

from __future__ import annotations

import argparse
import dataclasses
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

import frame

from bottleneck.parallel.host_memory import keep_freed_memory

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
        model=dataclasses.replace(config.model, head_rank=case.rank),
        compute=dataclasses.replace(config.compute, dtype=dtype, remat="none"),
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
    import jax
    import jax.numpy as jnp

    from bottleneck.parallel.mesh import make_mesh
    from bottleneck.training.step import make_train_program

    mesh = make_mesh(config.compute.mesh, jax.devices()[:1])
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


def peak_memory(name: str, device: str) -> int | None:
    """The most bytes that this process has held: on the GPU, or in memory since the last call; None
    where neither is told.
    """
    if device == "cuda" and name == "ours":
        import jax

        return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def serve(name: str, case: Case, device: str) -> None:
    """Reads a number of steps a line, takes them, and prints the seconds; at the end the memory."""
    keep_freed_memory()  # before any thread is there, as `python -m bottleneck train` does
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
    peak_memory(name, device)
    for line in sys.stdin:
        cores = time.process_time()
        seconds = run(int(line))
        used, memory = time.process_time() - cores, peak_memory(name, device)
        print(json.dumps({"seconds": seconds, "cpu": used, "memory": memory}), flush=True)


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
) -> dict[str, dict[str, Any]]:
    """Of each contestant: what it did a turn, and of the peers our speed over theirs, turn by turn.

    Args:
        seconds: that each contestant's turn takes, about.
    """
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
    peak_flops = max(player.facts.get("peak_flops") or 0.0 for player in players)
    of_token = flops_per_token(config.model, case.length).training(causal_halved=True)
    found: dict[str, dict[str, Any]] = {}
    for player in players:
        turns_of_it, n = answers[player.name], counts[player.name]
        rates = [n_tokens * n / one["seconds"] for one in turns_of_it]
        memories = [one["memory"] for one in turns_of_it if one["memory"]]
        found[player.name] = {
            "tokens_per_second": rates,
            "cpu_seconds": statistics.median(one["cpu"] / n for one in turns_of_it),
            "mfu": statistics.median(rates) * of_token / peak_flops if peak_flops else None,
            "start_seconds": player.facts["start"],
            "peak_memory": max(memories, default=None),
        }
    for entry in found.values():
        pairs = zip(found["ours"]["tokens_per_second"], entry["tokens_per_second"], strict=True)
        entry["ours_over_this"] = [ours / theirs for ours, theirs in pairs]
    return found


def row(case: Case, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Of the table; all that was measured is in it, too."""
    entries = list(found.values())
    mfu = found["ours"]["mfu"]
    rates = {
        f"{name}_rate": f"{statistics.median(entry['tokens_per_second']):,.0f}"
        for name, entry in found.items()
    }
    ratios = {
        f"{name}_ratio": frame.spread(entry["ours_over_this"], ".2f")
        for name, entry in found.items()
    }
    return {
        "case": case.name,
        **rates,
        **ratios,
        "mfu": f"{mfu:.0%}" if mfu else "–",
        "cpu": ", ".join(f"{entry['cpu_seconds']:.3g}" for entry in entries),
        "memory": ", ".join(f"{(entry['peak_memory'] or 0) / 1e9:.2g}" for entry in entries),
        "start": ", ".join(f"{entry['start_seconds']:.0f}" for entry in entries),
        "measured": found,
    }


def columns(names: list[str]) -> dict[str, str]:
    """What heads the table, for these contestants, ours first."""
    peers = names[1:]
    called = {"ours": "ours", "eager": "torch eager", "compiled": "torch.compile"}
    return {
        "case": "model, batch, head",
        **{f"{name}_rate": f"{called[name]}, tokens/s" for name in names},
        **{f"{name}_ratio": f"ours / {called[name]}" for name in peers},
        "mfu": "our MFU",
        "cpu": "processor seconds a step, each",
        "memory": "peak GB, each",
        "start": "s to the first step, each",
    }


def main() -> None:
    """Prints the table: tokens a second, ours over each peer's (median and range over the turns),
    MFU with causal attention halved, processor seconds of a step with all threads added up.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serve", nargs=2, metavar=("NAME", "CASE"), help=argparse.SUPPRESS)
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="cases with this in their name; nothing is kept"
    )
    parser.add_argument("--contestants", default=",".join(CONTESTANTS), help="ours comes first")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each contestant's turn")
    arguments = parser.parse_args()
    if arguments.serve:
        name, case = arguments.serve
        serve(name, Case(**json.loads(case)), arguments.device)
        return
    names = arguments.contestants.split(",")
    rows = []
    for case in CASES:
        if arguments.only in case.name:
            found = compare(case, names, arguments.device, arguments.turns, arguments.seconds)
            rows.append(row(case, found))
            print(case.name, rows[-1]["cpu"], file=sys.stderr, flush=True)
    if arguments.only:
        print(frame.markdown({"rows": rows, "columns": columns(names)}))
    else:
        frame.report("train_step", rows, columns(names))


if __name__ == "__main__":
    main()
