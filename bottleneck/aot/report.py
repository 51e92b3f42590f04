"""The report of a rehearsal: tables, JSON, and advice on what to change."""

from __future__ import annotations

import dataclasses
from typing import Any

import rich.console
import rich.table
from rich.text import Text

from bottleneck.aot.compile_check import TRAIN_STEP, ProgramReport, Rehearsal
from bottleneck.aot.hlo import Collective
from bottleneck.config import Config
from bottleneck.parallel.slices import flags_of

_GB = 1e9
_LARGE_SHARE = 0.1  # of the temporaries; logits that take more are worth a line of advice


def as_json(config: Config, rehearsal: Rehearsal) -> dict[str, Any]:
    """Returns a rehearsal and the advice on it as values that JSON can hold."""
    plain = _plain(rehearsal)
    for name, program in rehearsal.programs.items():
        plain["programs"][name]["collectives"] = [
            {"op": op, "axes": list(axes)} | total
            for (op, axes), total in _totals(program.collectives).items()
        ]
    return plain | {"advice": advice(config, rehearsal)}


def _plain(value: Any) -> Any:
    """Returns nested dicts and lists; a dataclass gives its fields and its public properties."""
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        names += [k for k, v in vars(type(value)).items() if isinstance(v, property)]
        return {name: _plain(getattr(value, name)) for name in names if not name.startswith("_")}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def _totals(collectives: tuple[Collective, ...]) -> dict[Any, dict[str, float]]:
    """(op, axes) → its runs, and the bytes it sends inside its slice and to others."""
    totals: dict[Any, dict[str, float]] = {}
    for each in collectives:
        nothing = {"count": 0, "ici_bytes": 0.0, "dcn_bytes": 0.0}
        total = totals.setdefault((each.op, each.axes), nothing)
        total["count"] += each.count
        total["ici_bytes"] += each.count * each.ici_bytes
        total["dcn_bytes"] += each.count * each.dcn_bytes
    return dict(sorted(totals.items(), key=lambda item: -sum(item[1].values())))


def advice(config: Config, rehearsal: Rehearsal) -> list[str]:
    """Returns changes that help if the train step does not fit, one a line, cheapest first."""
    if rehearsal.programs[TRAIN_STEP].fits:
        return []
    memory, capacity = rehearsal.programs[TRAIN_STEP].memory, rehearsal.chip.hbm_bytes
    model, train, compute, mesh = config.model, config.train, config.compute, rehearsal.mesh
    lines = []
    sequences = train.batch_size // (mesh["replica"] * mesh["fsdp"] * compute.accumulation_steps)
    tokens = min(compute.loss_chunk, sequences * train.sequence_length)
    logits = 4 * tokens * model.padded_vocab_size // mesh["tensor"]
    if logits > _LARGE_SHARE * memory.temporaries:
        lines.append(
            f"lower config.compute.loss_chunk={compute.loss_chunk}: the logits of a chunk take "
            f"{logits / _GB:.2f} GB"
        )
    if compute.remat != "full":
        less = "full" if compute.remat == "attention" else "attention"
        kept = "its input" if less == "full" else "its input, and attention's inputs and output"
        lines.append(
            f"set config.compute.remat={compute.remat} to {less}: a layer then keeps {kept}"
        )
    if sequences > 1 and memory.arguments < capacity:
        factor = memory.temporaries / (capacity - memory.arguments)
        divisors = [n for n in range(2, sequences + 1) if sequences % n == 0]
        parts = next((n for n in divisors if n >= factor), sequences)
        lines.append(
            f"raise config.compute.accumulation_steps={compute.accumulation_steps} to "
            f"{parts * compute.accumulation_steps}: "
            f"a micro-batch has {sequences} sequences a device"
        )
    if memory.arguments > capacity / 2:
        lines.append(
            f"raise config.compute.mesh.fsdp={mesh['fsdp']} or "
            f"config.compute.mesh.tensor={mesh['tensor']}: "
            f"parameters and optimizer state take {memory.arguments / _GB:.2f} GB"
        )
    return lines or [f"raise config.compute.mesh.tensor={mesh['tensor']}, or take a larger slice"]


def show(config: Config, rehearsal: Rehearsal, console: rich.console.Console) -> None:
    """Prints a rehearsal and the advice on it."""
    axes = " × ".join(f"{axis} {size}" for axis, size in rehearsal.mesh.items())
    slices = f"{rehearsal.n_slices} slices of " if rehearsal.n_slices > 1 else ""
    console.print(Text.assemble((f"{slices}{rehearsal.topology}", "bold"), f": {axes}"))
    for flag in flags_of(rehearsal.topology.partition(":")[0], rehearsal.n_slices):
        console.print(f"  compiled with --{flag.name}={flag.value}")
    for name, program in rehearsal.programs.items():
        _show_program(name, program, rehearsal, console)
    if rehearsal.fits:
        _show_roofline(config, rehearsal, console)
    for line in advice(config, rehearsal):
        console.print(f"  to change: {line}")


def _show_program(
    name: str, program: ProgramReport, rehearsal: Rehearsal, console: rich.console.Console
) -> None:
    memory, capacity = program.memory, rehearsal.chip.hbm_bytes / _GB
    verdict = ("fits", "green") if program.fits else ("does not fit", "red")
    sizes = (
        f": {memory.peak / _GB:.2f} of {capacity:.2f} GB a device "
        f"(arguments {memory.arguments / _GB:.2f}, temporaries {memory.temporaries / _GB:.2f}, "
        f"code {memory.code / _GB:.2f}); compiled in {program.compile_seconds:.0f} s"
    )
    console.print(Text.assemble("\n", (name, "bold"), " ", verdict, sizes))
    if program.cycles is not None:
        console.print(
            f"  the compiler expects {program.cycles / 1e6:,.1f} million cycles, without "
            "collectives, the embedding's lookup and flash attention"
        )
    if not program.fits:
        table = _table("largest temporaries", "GB", "from")
        for buffer in program.largest:
            table.add_row(buffer.shape, f"{buffer.bytes / _GB:.2f}", buffer.source)
    else:
        table = _table("collective", "over", "times", "GB in the slice", "GB to others")
        for (op, axes), total in _totals(program.collectives).items():
            sent = (f"{total[key] / _GB:.3f}" for key in ("ici_bytes", "dcn_bytes"))
            table.add_row(op, ", ".join(axes), f"{total['count']:,.0f}", *sent)
    console.print(table)


def _show_roofline(config: Config, rehearsal: Rehearsal, console: rich.console.Console) -> None:
    limits = rehearsal.roofline
    amounts = {
        "compute": f"{limits.hardware_flops / 1e12:.2f} TFLOP; MFU counts "
        f"{limits.model_flops / 1e12:.2f}",
        "HBM": f"{limits.hbm_bytes / _GB:.2f} GB at least",
        "ICI": f"{limits.ici_bytes / _GB:.2f} GB to devices of the slice",
        "DCN": f"{limits.dcn_bytes / _GB:.2f} GB to other slices",
    }
    table = _table("a step of a device", "at least", "for")
    for name, seconds in limits.seconds.items():
        style = "bold" if name == limits.binds else ""
        table.add_row(Text(name, style), Text(f"{seconds:.4f} s", style), amounts[name])
    console.print(table)
    console.print(
        f"{limits.binds} binds: a step takes at least {limits.step_seconds:.3f} s for "
        f"{config.tokens_per_step:,} tokens, and MFU is at most {limits.mfu_ceiling:.1%}, with "
        "causal attention halved. Compute includes what remat and the loss recompute."
    )


def _table(*columns: str) -> rich.table.Table:
    table = rich.table.Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    return table
