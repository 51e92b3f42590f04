"""A folder of n-gram spectra: what is kept, what goes on, the figure, and the command."""

import json
import resource
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest

from bottleneck.__main__ import main as run_program
from bottleneck.commands.ngrams import main
from bottleneck.errors import UserError
from bottleneck.ngrams import spectra as ngrams
from bottleneck.ngrams import study as ngram_study
from bottleneck.ngrams.figure import figure_7
from bottleneck.ngrams.rows import Estimate
from bottleneck.ngrams.spectra import NgramSpectrum, spectrum
from bottleneck.ngrams.study import NgramStudy, carry_out, summary
from bottleneck.ngrams.windows import Windows
from bottleneck.paper.curves import w_errors


@pytest.fixture
def tokens() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.minimum(rng.zipf(1.3, 4000), 120)


def study_of(*estimates, n=(3,), **fields):
    windows = [Windows(size, 121) for size in n]
    return NgramStudy(windows, estimates, dimensions=50, memory=1e9, **fields)


def test_a_study_has_a_curve_for_each_estimate_and_each_n(tokens, tmp_path):
    estimates = (Estimate(), Estimate("log", smoothing=1.0), Estimate(contexts=100))
    spectra = carry_out(study_of(*estimates, n=(2, 3)), tokens, "text", tmp_path)
    assert len(spectra) == 6 == len({one.label for one in spectra})
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    for (name, facts), one in zip(manifest["curves"].items(), spectra, strict=True):
        stored = NgramSpectrum.load(tmp_path / "curves" / f"{name}.npz")
        np.testing.assert_array_equal(stored.w_error, one.w_error)
        assert facts == one.facts == stored.facts
    alone = spectrum(tokens, 3, vocab_size=121, dimensions=50)
    np.testing.assert_allclose(spectra[3].w_error, alone.w_error, atol=1e-12)
    assert not (tmp_path / "scratch").exists()


def test_a_study_computes_only_what_is_not_there(tokens, tmp_path, monkeypatch):
    carry_out(study_of(Estimate()), tokens, "text", tmp_path)
    computed = []
    original = ngrams.spectrum_of

    def watched(table, estimate, *arguments, **fields):
        computed.append(estimate)
        return original(table, estimate, *arguments, **fields)

    monkeypatch.setattr(ngram_study, "spectrum_of", watched)
    monkeypatch.setattr("bottleneck.ngrams.counts.keys", None)  # nothing counts again
    carry_out(study_of(Estimate()), tokens, "text", tmp_path)
    assert computed == []
    carry_out(study_of(Estimate(), Estimate("pmi")), tokens, "text", tmp_path)
    assert computed == [Estimate("pmi")]
    carry_out(study_of(Estimate(), exact=True), tokens, "text", tmp_path)
    assert computed[1:] == [Estimate()]


def test_the_folder_of_another_text_is_refused(tokens, tmp_path):
    carry_out(study_of(Estimate()), tokens, "text", tmp_path)
    with pytest.raises(
        UserError, match="holds n-gram spectra with tokens='text'; now tokens='other'"
    ):
        carry_out(study_of(Estimate()), tokens, "other", tmp_path)


def test_the_summary_says_w_error_null_and_where_it_is_halved():
    w_error, null = np.linspace(1, 0, 5001), np.linspace(1, 0.5, 5001)
    facts = {"n": 5, "contexts": 12_345, "min_count": 2, "space": "pmi", "smoothing": 0.5}
    facts |= {"weighting": "frequency", "w_error_within": 3e-4, "dimensions": 3000}
    least = np.where(np.arange(5001) <= 3000, w_error, w_error - 0.01)
    text = summary([NgramSpectrum(w_error, w_error, least, null, facts)])
    row = text.splitlines()[1]
    assert row.startswith("5-grams, 12,345 contexts, seen 2× or more, pmi, α = 0.5, by frequency")
    assert " 0.800 (0.900)" in row and "≤ 0.200 (0.600)" in row and row.endswith("2,500")
    assert row.count("≤") == 1 and "known to 3.0e-04 up to d = 3,000" in text


@pytest.mark.parametrize("paper", [False, True])
def test_figure_7_draws_each_curve_its_null_and_what_is_left_without_chance(tokens, paper):
    spectra = [
        spectrum(tokens, 2, vocab_size=121, split_half=True),
        spectrum(tokens, 3, vocab_size=121),
    ]
    curves = w_errors() if paper else {}
    left, right = figure_7(spectra, curves).axes
    published = len(curves)
    # Two curves, two nulls, one of halves, and the line at a half.
    assert len(left.lines) == published + 6 and len(right.lines) == 3
    curve = left.lines[published]
    d = curve.get_xdata().astype(int)
    np.testing.assert_array_equal(curve.get_ydata(), spectra[0].w_error[d])
    assert d[0] == 0 and d[-1] == len(spectra[0].w_error) - 1


def test_the_command_writes_curves_a_manifest_and_a_figure(tokens, tmp_path, capsys):
    np.save(tmp_path / "tokens.npy", tokens)
    arguments = [f"--ids={tmp_path}/tokens.npy", f"--output={tmp_path}/out", "--n=2,3"]
    arguments += ["--contexts=50,100", "--split_half", "--paper", "--memory=1.5"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out.count("-grams") == 4 and "figure-7.png" in captured.out
    assert "3,999 windows in one run" in captured.err and "GB of memory" in captured.err
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [".lock", "counts", "curves", "figure-7.png", "manifest.json", "plan.json"]
    assert len(list((tmp_path / "out/curves").iterdir())) == 4
    assert matplotlib.image.imread(tmp_path / "out/figure-7.png").shape[1] > 1000


def test_the_command_reads_the_corpus_of_a_config(tmp_path, capsys):
    lines = [json.dumps({"text": f"document {i} of {i % 7} and {i % 11} words"}) for i in range(90)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    arguments = [
        "--config=configs/nano.py",
        "--config.data.corpus=text",
        f"--config.data.paths={tmp_path}/corpus.jsonl",
        f"--config.data.cache_dir={tmp_path}/cache",
        "--config.data.tokenizer_vocab_size=300",
        f"--output={tmp_path}/out",
    ]
    assert main(arguments) == 0
    assert "5-grams" in capsys.readouterr().out
    with pytest.raises(UserError, match="--end_of_text is for --ids"):
        main([*arguments, "--end_of_text=0"])


@pytest.mark.parametrize(
    ("contents", "arguments", "message"),
    [
        ([], [], "the corpus has no tokens"),
        ([1], [], "the corpus has 1 tokens; at least 5 are needed for one 5-gram"),
        ([1, 2, 3], [], "the corpus has 3 tokens; at least 5 are needed for one 5-gram"),
        ([1] * 9, ["--n=9"], "n=9 is not allowed; n-grams have 2 to 7 tokens"),
        ([1] * 9, ["--space=log", "--smoothing=0"], "the log space needs a smoothing above 0"),
        ([1] * 9, ["--memory=0.7"], "--memory=0.7 is not allowed; it must be above 1 GB"),
        ([1] * 9, ["--split_half", "--space=pmi"], "split halves are compared in the probability"),
        ([0.5] * 9, [], "must be a one-dimens"),
        ([[1, 2]] * 9, [], "must be a one-dimens"),
        (None, [], "is not a .npy file"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, contents, arguments, message):
    if contents is not None:
        dtype = float if contents and contents[0] == 0.5 else int
        np.save(tmp_path / "tokens.npy", np.array(contents, dtype))
    fixed = ["ngrams", f"--ids={tmp_path}/tokens.npy", f"--output={tmp_path}/out"]
    assert run_program([*fixed, *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error


@pytest.mark.slow
def test_ten_million_tokens_take_four_gigabytes_at_most(tmp_path):
    """5-grams of V = 16,384 to d = 4,000, in a process of its own, whose memory is measured."""
    rng = np.random.default_rng(0)
    n, vocab_size = 10_000_000, 16_384
    p = 1 / np.arange(1, vocab_size + 1)
    drawn, follows = (rng.choice(vocab_size, size, p=p / p.sum()) for size in (n, vocab_size))
    tokens = np.where(rng.random(n) < 0.7, follows[np.roll(drawn, 1)], drawn)
    np.save(tmp_path / "tokens.npy", tokens.astype(np.uint16))
    program = [sys.executable, "-m", "bottleneck", "ngrams", f"--ids={tmp_path}/tokens.npy"]
    subprocess.run([*program, f"--output={tmp_path}/out"], check=True)
    # In kilobytes, of the greatest of this process's children.
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 4e6
    (path,) = (tmp_path / "out/curves").iterdir()
    found = NgramSpectrum.load(path)
    assert found.facts["n"] == 5 and found.facts["dimensions"] == 4000
    assert found.facts["columns"] > 16_000 and found.facts["windows"] == n - 4
    assert np.max((found.w_error - found.w_error_least)[:4001]) <= 1e-3
