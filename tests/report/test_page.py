import base64
import json
import re
from html.parser import HTMLParser

import pytest

from bottleneck.report.exhibits import EXHIBITS
from bottleneck.report.page import write_report
from bottleneck.report.summary import MEASURES
from bottleneck.runs import load


class Page(HTMLParser):
    """What a page refers to, what it shows, and whether its tags are balanced."""

    VOID = ("meta", "img")

    def __init__(self, text):
        super().__init__()
        self.references, self.tags, self.text, self._open = [], [], [], []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._open += [] if tag in self.VOID else [tag]
        self.references += [v for k, v in attributes if k in ("src", "href", "srcset", "data")]

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(path):
    page = Page(path.read_text())
    return page, re.sub(r"\s+", " ", " ".join(page.text))


@pytest.fixture(scope="module")
def four_runs(write_run, write_frozen_heads, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    paths = [
        *(write_run(folder / f"rank{r}", head_rank=r, language_rank=8) for r in (2, 4, 8)),
        write_run(folder / "full", language_rank=8),
    ]
    write_frozen_heads(paths[1] / "features" / "frozen_heads")
    return [load(path) for path in paths]


@pytest.fixture(scope="module")
def report(four_runs, tmp_path_factory):
    return write_report(four_runs, tmp_path_factory.mktemp("report"))


@pytest.fixture
def one_figure(monkeypatch):
    """Drawing takes a second a figure, and some tests are about the words."""
    monkeypatch.setattr("bottleneck.report.page.EXHIBITS", EXHIBITS[:1])


@pytest.fixture
def comparing_figures(monkeypatch):
    """Those that a run that has just begun has not enough for."""
    comparing = [e for e in EXHIBITS if e.name in ("loss_by_rank", "spectrum")]
    monkeypatch.setattr("bottleneck.report.page.EXHIBITS", comparing)


def test_report_refers_to_nothing_outside_itself(report):
    page, _ = read(report)
    assert len(page.references) == len(EXHIBITS)
    assert all(reference.startswith("data:image/svg+xml;base64,") for reference in page.references)
    assert not {"link", "iframe", "object"} & set(page.tags)  # its script stands in it
    assert "http" not in report.read_text()
    assert "url(" not in report.read_text() and "@import" not in report.read_text()
    for reference in page.references:
        svg = base64.b64decode(reference.partition(",")[2]).decode()
        links = re.findall(r'href\s*=\s*"([^"]*)"', svg)
        assert links and all(link.startswith(("#", "data:")) for link in links)


def test_report_shows_every_figure_with_its_sentence_and_writes_its_files(report):
    _, text = read(report)
    for exhibit in EXHIBITS:
        assert exhibit.title in text and exhibit.sentence in text
        png, svg = (report.parent / "figures" / f"{exhibit.name}.{s}" for s in ("png", "svg"))
        assert png.read_bytes().startswith(b"\x89PNG") and b"<svg" in svg.read_bytes()


def test_report_defines_every_number_in_its_table(report):
    _, text = read(report)
    for measure in MEASURES:
        assert measure.definition in text
        assert text.count(measure.heading.replace("\n", " ")) >= 2  # in the table and defined


def test_report_says_how_the_runs_differ_and_what_they_share(one_figure, make_run, tmp_path):
    runs = [
        load(make_run("a", head_rank=8, learning_rate=3e-4, steps=50)),
        load(make_run("b", steps=50)),
    ]
    _, text = read(write_report(runs, tmp_path / "report"))
    differing, rest = text.partition("How the runs differ")[2].split("Where the numbers come from")
    assert re.findall(r"[a-z]+\.[a-z_]+", differing) == [
        "model.head_rank",
        "optimizer.learning_rate",
    ]
    assert "0.0003" in differing and "None" in differing
    shared = rest.partition("Config that all runs share")[2]
    assert "model.d_model 64" in shared and "model.head_rank" not in shared
    assert "jax 0.10.2" in rest and "fsdp 1" in rest and "0123456789ab" in rest


def test_report_of_one_unfinished_run_says_what_is_missing_and_why(
    comparing_figures, make_run, tmp_path
):
    _, text = read(write_report([load(make_run("begun", stop=0))], tmp_path / "report"))
    assert "begun is unfinished: step 0 of 400." in text
    assert "Left out: Singular values of the head over training: no run has two probes" in text
    assert "Left out: Final validation loss against the rank of the head: it needs finished" in text


def test_figures_of_an_earlier_report_do_not_stay(comparing_figures, make_run, tmp_path):
    left = [tmp_path / "figures" / f"loss_by_rank.{suffix}" for suffix in ("png", "svg")]
    left[0].parent.mkdir()
    for path in left:
        path.touch()
    write_report([load(make_run(stop=0))], tmp_path)
    assert not any(path.exists() for path in left)


def test_the_same_runs_give_the_same_page(one_figure, four_runs, tmp_path):
    first, second = (write_report(four_runs, tmp_path / name).read_bytes() for name in "ab")
    assert first == second


def test_names_of_runs_are_text_not_markup(one_figure, make_run, tmp_path):
    page, text = read(write_report([load(make_run("<b>&amp; 5$", stop=0))], tmp_path / "report"))
    assert "b" not in page.tags
    assert "Run <b>&amp; 5$: head rank 64" in text


def test_nothing_that_a_run_folder_says_is_markup(one_figure, make_run, tmp_path):
    hostile = '"><script>alert(1)</script><img src=x onerror=alert(1)>{style}'
    paths = [make_run(f"<u title='{i}'>", steps=50, seed=i) for i in (1, 2)]
    for path in paths:
        record = json.loads((path / "config.json").read_text())
        record["config"]["data"]["tokenizer"] = f"{path.name}{hostile}"
        record |= {"versions": {hostile: hostile}, "mesh": {hostile: 1}, "series": hostile}
        (path / "config.json").write_text(json.dumps(record | {"git_revision": hostile}))
    page, text = read(write_report([*map(load, paths)], tmp_path / "report"))
    assert page.tags.count("img") == page.tags.count("script") == 1  # the figure, our own
    assert "u" not in page.tags
    assert f"{paths[0].name}{hostile}" in text  # among the fields that differ
    assert f"checkpoints of {hostile}" in text and f"{hostile} {hostile}" in text
    assert all(reference.startswith("data:image/") for reference in page.references)


def test_names_of_runs_are_no_formulas(monkeypatch, make_run, tmp_path):
    wanted = ("loss", "saturation", "gap_by_rank", "spectrum", "singular_entropy")
    monkeypatch.setattr(
        "bottleneck.report.page.EXHIBITS", [e for e in EXHIBITS if e.name in wanted]
    )
    # matplotlib cannot read the first, and would set the second in italics without its signs.
    names = [r"$\bad{$", "$x$ y", "--><script>"]
    runs = [load(make_run(name, probe_every=40, seed=i)) for i, name in enumerate(names)]
    write_report(runs, tmp_path / "report")
    drawn = [(tmp_path / f"report/figures/{name}.svg").read_text() for name in wanted]
    for svg in drawn:
        assert "$x$ y" in svg and "<script" not in svg
