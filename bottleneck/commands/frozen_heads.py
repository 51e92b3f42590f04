"""Train heads of many ranks on the frozen features of a model, and fit what the rank costs.

FEATURES is a folder that `features` wrote, with both training and validation tokens. Repeat the
command to resume after an interruption.
"""

from __future__ import annotations

from pathlib import Path

from bottleneck.commands.parsing import Parser, listed, option, real, whole


def main(argv: list[str]) -> int:
    parser = Parser("python -m bottleneck frozen_heads", description=__doc__)
    parser.add_argument("features", metavar="FEATURES", type=Path, help="such as features/410m")
    option(parser, "--output", Path, "folder to write (default: frozen_heads/ in FEATURES)")
    some = "ranks to train; the full rank is added (default: powers of two)"
    option(parser, "--ranks", listed(whole(1)), some)
    starts = "initialisations: whitened, normal (the paper's), matched, plain"
    option(parser, "--starts", listed(str), starts, ("whitened", "normal"))
    rates = "peak learning rates to try for each rank"
    paper = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2)
    option(parser, "--learning_rates", listed(real(0, is_open=True)), rates, paper)
    option(parser, "--steps", whole(1, 10**8), "steps of training a head", 2000)
    search = "steps of each learning rate tried (default: a tenth of --steps)"
    option(parser, "--search_steps", whole(1, 10**8), search)
    option(parser, "--batch_tokens", whole(1, 2**24), "tokens in a batch", 8192)
    prior = "standard deviation of the prior on logits, in nats; inf for none"
    option(parser, "--logit_sd", real(0, is_open=True, may_be_infinite=True), prior, 5.0)
    chunk = "tokens whose logits exist at one time"
    option(parser, "--loss_chunk", whole(1, 2**24), chunk, 256)
    option(parser, "--seed", whole(0), "seed of batches and initialisations", 0)
    flags = parser.parse_args(argv)

    from bottleneck import frozen
    from bottleneck.drawing.style import save
    from bottleneck.parallel import compile_cache

    compile_cache.use()
    features = frozen.load(flags.features)
    width = features.manifest.d_model
    ranks = flags.ranks or [2**i for i in range((width - 1).bit_length())]
    plan = frozen.FrozenPlan(
        features=f"{features.manifest.model}, {features.manifest.corpus}",
        ranks=tuple(sorted({*ranks, width})),
        starts=flags.starts,
        learning_rates=flags.learning_rates,
        steps=flags.steps,
        search_steps=flags.search_steps or max(flags.steps // 10, 10),
        batch_tokens=flags.batch_tokens,
        logit_sd=flags.logit_sd,
        loss_chunk=flags.loss_chunk,
        seed=flags.seed,
    )
    folder = flags.output or flags.features / "frozen_heads"
    frozen.FrozenStudy(features, plan, folder).run()
    frozen.print_results(folder)
    print(f"figure: {save(frozen.heads_figure([folder]), folder / 'frozen_heads.png')}")
    return 0
