"""Whatever is wrong with a command, it ends with exit code 2 and one line on standard error."""

import numpy as np
import pytest

from bottleneck.__main__ import main, verbs

NANO = "--config=configs/nano.py"
LONG = "x" * 300

# What each verb needs before a flag of it is looked at.
NEEDED = {
    "analyze": ["{run}"],
    "compile": [NANO, "--topology=v5e:2x2"],
    "evaluate": ["{run}", "--tasks=sciq"],
    "features": ["{run}", "--output={new}"],
    "fit": ["--table={table}", "--output={new}"],
    "frozen_heads": ["{run}"],
    "import_hf": ["{run}", "--workdir={new}"],
    "ngrams": ["--ids={tokens}", "--output={new}"],
    "paper": ["--out={new}"],
    "prepare": [NANO],
    "series": ["{run}", "--workdir={new}", NANO],
    "sweep": ["--config=configs/head_rank.py"],
    "train": ["--workdir={new}", NANO],
}
NUMBERS = ["", "x", "nan", "-1", "1e400", "1" * 5000, "9" * 30, "0x10", "1.5.2", "\0"]
NUMERIC = {
    "compile": "num_slices",
    "evaluate": "steps limit batch_size",
    "features": "step tokens validation_tokens layer length batch",
    "fit": "fit_from bootstrap",
    "frozen_heads": "ranks learning_rates steps search_steps batch_tokens logit_sd chunk seed",
    "import_hf": "step",
    "ngrams": "end_of_text n windows contexts min_count smoothing dimensions memory seed",
    "series": "steps every",
    "sweep": "index parallel processes process",
    "train": "processes process",
}
# Numbers that these flags do take.
TAKEN = {
    "--logit_sd=1e400",
    *(f"--{name}=" + "9" * 30 for name in ("smoothing", "memory", "fit_from")),
}

MISTAKES = [
    *((verb, [*needed, "--no_such_flag"]) for verb, needed in NEEDED.items()),
    *((verb, [*needed, "--no_such_flag=3"]) for verb, needed in NEEDED.items()),
    *((verb, [*needed, "one", "too", "--many"]) for verb, needed in NEEDED.items()),
    *((verb, []) for verb in NEEDED if verb != "paper"),
    *(
        (verb, [*NEEDED[verb], f"--{flag}={number}"])
        for verb, flags in NUMERIC.items()
        for flag in flags.split()
        for number in NUMBERS
        if f"--{flag}={number}" not in TAKEN
    ),
    *(
        (verb, [path, *NEEDED[verb][1:]])
        for verb in ("analyze", "evaluate", "features", "frozen_heads")
        for path in (
            "",
            "absent",
            "{table}",
            "{tokens}",
            LONG,
            f"{{new}}/{LONG}/x",
            "a\0b",
            "/",
            ".",
        )
    ),
    *(
        (verb, [a for a in NEEDED[verb] if "--config" not in a] + [f"--config={path}"])
        for verb in ("train", "prepare", "series", "compile", "sweep", "features")
        for path in (
            "",
            ":",
            "absent.py",
            "{run}",
            "{table}",
            "{tokens}",
            LONG,
            "a\0b",
            "/dev/null",
        )
    ),
    *(
        (verb, [*NEEDED[verb], f"--config.{override}"])
        for verb in ("train", "prepare", "compile", "series")
        for override in (
            *("=3", "model=3", "modl.d_model=3", "model.d_model", "model.d_model=", "seed=nan"),
            *("model.d_model=1e400", "model.d_model=" + "1" * 5000, "optimizer.learning_rate=inf"),
            *("data.cache_dir=\0", "model.tie_embeddings=maybe", "probe.ranks=1,x", "model..x=1"),
        )
    ),
    *(
        ("fit", [f"--table={path}"])
        for path in ("", "absent.csv", "{run}", "{tokens}", f"{LONG}.csv", "a\0.csv", "/dev/null")
    ),
    ("fit", ["absent", "--output={new}"]),
    ("fit", [LONG]),
    ("fit", ["a\0b"]),
    *(
        ("fit", [*NEEDED["fit"], "--bootstrap=0", f"--fixed={fixed}"])
        for fixed in (
            "=",
            "E",
            "E=",
            "=3",
            "E=x",
            "E=nan",
            "E=inf",
            "E=-1",
            "E=1e400",
            "Q=1",
            "B=0",
        )
    ),
    ("fit", [*NEEDED["fit"], "--form=linear"]),
    ("fit", [*NEEDED["fit"], "--columns", "loss"]),
    ("ngrams", [*NEEDED["ngrams"], "--n=1"]),
    ("ngrams", [*NEEDED["ngrams"], "--n=8"]),
    ("ngrams", [*NEEDED["ngrams"], "--memory=inf"]),
    ("ngrams", [*NEEDED["ngrams"], "--output=/dev/null/x"]),
    *(
        ("ngrams", [f"--ids={path}", "--output={new}"])
        for path in ("", "absent", "{run}", "{table}", LONG, "a\0b", "/dev/null")
    ),
    ("import_hf", ["{run}", "--workdir={new}"]),
    ("import_hf", ["/dev/null", "--workdir={new}"]),
    ("series", ["{table}", "--workdir={new}", NANO]),
    ("series", ["{run}", "--workdir={new}", "--audit_only"]),
    ("paper", ["--evals=absent"]),
    ("paper", ["--evals={tokens}"]),
    ("paper", [f"--evals={LONG}"]),
    ("paper", ["--series", "absent"]),
    ("sweep", ["--config=configs/nano.py", "--list"]),
    ("sweep", ["--config=configs/head_rank.py"]),
    ("sweep", ["--config=configs/head_rank.py", "--list", "--status"]),
    ("sweep", ["--config=configs/head_rank.py", "--workdir={new}", "--index=99999"]),
    ("sweep", ["--config=configs/head_rank.py", "--workdir=s3://bucket/x", "--status"]),
    ("train", ["--workdir={new}", NANO, "--coordinator=here", "--processes=1", "--process=0"]),
]


@pytest.fixture(scope="module")
def places(write_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    write_run(folder / "run", steps=20)
    (folder / "points.csv").write_text(
        "n_params,n_tokens,loss\n" + "".join(f"{n}e6,{n}e8,{4 - n / 10}\n" for n in range(1, 9))
    )
    np.save(folder / "tokens.npy", np.arange(100) % 7)
    names = {"run": "run", "table": "points.csv", "tokens": "tokens.npy", "new": "new"}
    return {key: str(folder / name) for key, name in names.items()}


@pytest.fixture(autouse=True)
def nothing_is_asked_of_the_hub(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_every_verb_is_tried():
    assert NEEDED.keys() == set(verbs())


@pytest.mark.parametrize(
    ("verb", "arguments"),
    MISTAKES,
    ids=[f"{verb} {' '.join(a[-2:])!a:.60} {i}" for i, (verb, a) in enumerate(MISTAKES)],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, places, verb, arguments):
    code = main([verb, *(argument.format(**places) for argument in arguments)])
    said = capsys.readouterr()
    assert code == 2
    assert said.err.startswith("error: ") and said.err.count("\n") == 1, said.err
