"""Compile a run's programs for a TPU slice that is not there: memory, collectives, roofline.

Needs no data and no TPU, but libtpu. Exit code 1 says that a program does not fit.
"""

from __future__ import annotations

import json
import os

from bottleneck.commands.flags import parse_command
from bottleneck.commands.parsing import Parser, whole

# libtpu would otherwise ask a metadata server what machine this is, write its log to the terminal
# and to /tmp, and serve one process at a time. It and jax read these when they are imported.
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
    """Returns 0, or 1 where a program does not fit; raises `UserError` for what cannot be tried."""
    parser = Parser("python -m bottleneck compile", description=__doc__)
    parser.add_argument(
        "--topology", required=True, metavar="CHIP:SHAPE", help="a slice, such as v5e:16x16"
    )
    parser.add_argument(
        "--num_slices", type=whole(1, 2**16), default=1, metavar="N", help="default: 1"
    )
    parser.add_argument(
        "--train_step_only", action="store_true", help="leave out the probes, for half the time"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments, config = parse_command(parser, argv, needs_data=False)

    os.environ |= ENVIRONMENT

    from bottleneck.aot.compile_check import rehearse
    from bottleneck.aot.report import as_json, show
    from bottleneck.terminal import PlainConsole

    rehearsal = rehearse(
        config,
        arguments.topology,
        arguments.num_slices,
        with_probes=not arguments.train_step_only,
    )
    if arguments.json:
        print(json.dumps(as_json(config, rehearsal), indent=2))
    else:
        show(config, rehearsal, PlainConsole(highlight=False))
    return 0 if rehearsal.fits else 1
