"""Train heads of many ranks on the frozen features of a model, and fit what the rank costs.

FEATURES is a folder that `features` wrote, with both training and validation tokens. Repeat the
command to resume after an interruption.
"""

from __future__ import annotations

from pathlib import Path

from bottleneck.commands.parsing import Parser, listed, real, whole


def main(argv: list[str]) -> int:
    """Returns the exit code; raises `UserError` if the features or a value are wrong."""
    parser = Parser("python -m bottleneck frozen_heads", description=__doc__)
    parser.add_argument("features", metavar="FEATURES", type=Path, help="such as features/410m")
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        help="folder to write (default: frozen_heads/ in FEATURES)",
    )
    parser.add_argument(
        "--ranks",
        type=listed(whole(1)),
        metavar="N,…",
        help="ranks to train; the full rank is added (default: powers of two)",
    )
    parser.add_argument(
        "--starts",
        type=listed(str),
        default=("whitened", "normal"),
        metavar="NAME,…",
        help="initialisations: whitened, normal (the paper's), matched, plain "
        "(default: whitened,normal)",
    )
    parser.add_argument(
        "--learning_rates",
        type=listed(real(0, is_open=True)),
        default=(1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2),
        metavar="X,…",
        help="peak learning rates to try for each rank (default: the paper's, 1e-3 to 5e-2)",
    )
    parser.add_argument(
        "--steps",
        type=whole(1, 10**8),
        default=2000,
        metavar="N",
        help="steps of training a head (default: 2000)",
    )
    parser.add_argument(
        "--search_steps",
        type=whole(1, 10**8),
        metavar="N",
        help="steps of each learning rate tried (default: a tenth of --steps)",
    )
    parser.add_argument(
        "--batch_tokens",
        type=whole(1, 2**24),
        default=8192,
        metavar="N",
        help="tokens in a batch (default: 8192)",
    )
    parser.add_argument(
        "--logit_sd",
        type=real(0, is_open=True, may_be_infinite=True),
        default=5.0,
        metavar="X",
        help="standard deviation of the prior on logits, in nats; inf for none (default: 5)",
    )
    parser.add_argument(
        "--loss_chunk",
        type=whole(1, 2**24),
        default=256,
        metavar="N",
        help="tokens whose logits exist at one time (default: 256)",
    )
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="default: 0")
    flags = parser.parse_args(argv)

    # Imported here because they take seconds: --help need not wait for them.
    from bottleneck.frozen.features import load_features
    from bottleneck.frozen.figures import print_results, write_figures
    from bottleneck.frozen.study import Plan, Study
    from bottleneck.parallel import compile_cache

    compile_cache.use()
    features = load_features(flags.features)
    width = features.manifest.d_model
    powers = tuple(2**i for i in range(width.bit_length()))
    plan = Plan(
        features=f"{features.manifest.model}, {features.manifest.corpus}",
        ranks=tuple(sorted({*(flags.ranks or (r for r in powers if r < width)), width})),
        starts=flags.starts,
        learning_rates=flags.learning_rates,
        steps=flags.steps,
        search_steps=max(flags.steps // 10, 10)
        if flags.search_steps is None
        else flags.search_steps,
        batch_tokens=flags.batch_tokens,
        logit_sd=flags.logit_sd,
        loss_chunk=flags.loss_chunk,
        seed=flags.seed,
    )
    folder = flags.output or flags.features / "frozen_heads"
    Study(features, plan, folder).run()
    print_results(folder)
    for path in write_figures(folder):
        print(f"figure: {path}")
    return 0
