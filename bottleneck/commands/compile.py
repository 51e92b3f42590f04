"""Compile a run's programs for an absent TPU slice: memory, collectives, roofline.

Needs libtpu, but no TPU and no data. Exits with 1 if a program does not fit.
"""

from __future__ import annotations

import json
import os

from bottleneck.commands.flags import parse_command
from bottleneck.commands.parsing import Parser, option, switch, whole

# Read by libtpu and jax when they are imported. Without them, libtpu asks a metadata server about
# the machine, logs to the terminal and to /tmp, and serves one process at a time.
ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # a program from the cache leaves no text to read
    "JAX_PLATFORMS": "cpu",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def main(argv: list[str]) -> int:
    """Returns 0, or 1 if a program does not fit; raises `UserError` for a wrong topology."""
    parser = Parser("python -m bottleneck compile", description=__doc__)
    topology = "the slice, such as v5e:16x16"
    option(parser, "--topology", str, topology, metavar="CHIP:SHAPE", required=True)
    option(parser, "--num_slices", whole(1, 2**16), "slices", 1)
    switch(parser, "--train_step_only", "leave out the probe programs; takes half the time")
    switch(parser, "--json", "print JSON")
    arguments, config = parse_command(parser, argv, needs_data=False)

    os.environ |= ENVIRONMENT

    from bottleneck.aot.compile_check import rehearse
    from bottleneck.aot.report import as_json, show
    from bottleneck.terminal import PlainConsole

    slices, with_probes = arguments.num_slices, not arguments.train_step_only
    rehearsal = rehearse(config, arguments.topology, slices, with_probes=with_probes)
    if arguments.json:
        print(json.dumps(as_json(config, rehearsal), indent=2))
    else:
        show(config, rehearsal, PlainConsole(highlight=False))
    return 0 if rehearsal.fits else 1
