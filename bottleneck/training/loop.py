"""The training loop, in the order in which things happen.

After each step: probe, save, and only then take the next batch. So a checkpoint's probe and metrics
are on disk, and a resumed run repeats only the steps after its last checkpoint. Metrics are read
one step late, so the device never waits. On SIGTERM or Ctrl-C it saves after the current step, and
exits with 143 or 130.
"""

import contextlib
import os
import sys
from pathlib import Path

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from bottleneck.config import Config, check_divides
from bottleneck.data.batches import Batches, validation_windows
from bottleneck.data.tokens import TokenCache, prepare
from bottleneck.model.accounting import count_parameters
from bottleneck.parallel import preemption
from bottleneck.parallel.chips import peak_flops
from bottleneck.parallel.mesh import make_mesh
from bottleneck.probes.prober import Prober
from bottleneck.runs import folder as run_folder
from bottleneck.runs.checkpoints import Checkpointer
from bottleneck.signals import EXIT_CODES
from bottleneck.storage.folders import as_path
from bottleneck.storage.workspace import claimed
from bottleneck.terminal import console
from bottleneck.training.feed import device_batches
from bottleneck.training.reporter import Reporter
from bottleneck.training.step import make_train_program


def train(config: Config, workdir: str | os.PathLike[str]) -> None:
    """Trains to step `train.steps`, from the newest checkpoint in the run folder if any.

    Raises `UserError` if the folder, the data or the devices do not fit the config.
    """
    workdir = as_path(workdir)
    is_writer = jax.process_index() == 0
    console.quiet = not is_writer
    run_folder.check_continues(workdir, config)
    if run_folder.is_complete(workdir):
        console.print(f"{workdir} holds this run, complete; nothing to do")
        return
    with claimed(workdir) if is_writer else contextlib.nullcontext():
        # Another run may have taken the folder before the claim.
        run_folder.check_continues(workdir, config)
        _train_in(workdir, config)


def _train_in(workdir: Path, config: Config) -> None:
    is_writer = jax.process_index() == 0
    mesh = make_mesh(config.compute.mesh)
    check_divides(config, dict(mesh.shape))
    cache = prepare(config.data)
    run_folder.check_same_corpus(workdir, cache.digest)
    parameters = count_parameters(config.model)
    # No process writes before all have checked the folder.
    multihost_utils.sync_global_devices("run folder checked")
    if is_writer:
        workdir.mkdir(parents=True, exist_ok=True)
        facts = run_folder.facts(dict(mesh.shape), parameters, cache)
        run_folder.write_config(workdir, config, facts)

    # An unknown peak is measured before the mesh is in context and the devices are busy.
    peak = jax.device_count() * (config.compute.peak_flops or peak_flops(jax.local_devices()[0]))
    with jax.set_mesh(mesh), Checkpointer(workdir / "checkpoints", config.checkpoint) as saved:
        _train_from(saved, config, workdir, mesh, cache, peak)
    if is_writer:
        run_folder.write_text(workdir / run_folder.COMPLETE, "")


def _train_from(
    saved: Checkpointer, config: Config, workdir: Path, mesh: Mesh, cache: TokenCache, peak: float
) -> None:
    steps, batch_size = config.train.steps, config.train.batch_size
    length = config.train.sequence_length
    batches = Batches(cache, batch_size=batch_size, sequence_length=length, seed=config.seed)
    windows = validation_windows(cache, config.probe.tokens, length)
    prober = Prober(config, mesh, windows, cache.unigram_counts())
    program = make_train_program(config, mesh)
    start = saved.latest_step()
    if start is None:
        if run_folder.metric_files(workdir):
            console.print(f"{workdir} has no checkpoint yet; starting again at step 0")
        params, opt_state = program.init()
    else:
        console.print(f"continuing from step {start:,} in {workdir}")
        params, opt_state = saved.restore(start, program.abstract_state)

    with Reporter(config, workdir, start or 0, peak, batches.windows) as report:
        with report.booked("compile"):
            train_step = program.compile(batch_size, length)
            prober.compile(program.abstract_state[0])
        with preemption.Notice(report.say) as notice:
            if start is None:
                with report.booked("probe"):
                    report.probe(0, prober.measure(params))
                if config.checkpoint.is_due(0):
                    saved.save(0, params, opt_state)
            fed = device_batches(batches, mesh, start or 0, steps)
            for step, batch in report.waited("data", fed):
                params, opt_state, metrics = train_step(params, opt_state, batch)
                done = step + 1
                report.train(done, metrics)
                is_stopped = notice.has_come(done)
                is_probed = done % config.probe.every == 0 or done == steps
                is_saved = config.checkpoint.is_due(done) or done == steps or is_stopped
                if is_probed or is_saved:
                    report.settle()
                    if done == steps or is_stopped:
                        report.end_spoilt()
                    # Parameters that are not finite are neither probed nor saved.
                    is_probed &= not report.is_spoilt
                    is_saved &= not report.is_spoilt
                if is_probed:
                    with report.booked("probe"):
                        report.probe(done, prober.measure(params))
                if is_saved:
                    with report.booked("checkpoint"):
                        report.flush()
                        saved.save(done, params, opt_state)
                if is_stopped and done < steps:
                    saved.wait()
                    name = notice.signal.name
                    report.say(f"{name}: saved step {done:,}; the same command resumes there")
                    sys.exit(EXIT_CODES[notice.signal])
            with report.booked("checkpoint"):
                saved.wait()
        report.finish(steps)
