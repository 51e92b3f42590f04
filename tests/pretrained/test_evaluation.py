"""The harness's tasks on a model of ours against the harness's own model of the same weights."""

import json
import random
from importlib.util import find_spec

import numpy as np
import pytest

from bottleneck import runs
from bottleneck.__main__ import main
from bottleneck.data import tokenizer as tokenization
from bottleneck.errors import UserError
from bottleneck.pretrained.huggingface import save_pretrained

pytestmark = [
    pytest.mark.hf,
    pytest.mark.skipif(
        any(find_spec(name) is None for name in ("torch", "transformers", "lm_eval")),
        reason="needs the [hf] and [eval] extras: make test-hf",
    ),
    pytest.mark.filterwarnings("default"),  # of the harness and of what it imports
]

# A multiple choice, a perplexity of whole texts, and text that is written until a word.
TASKS = {
    "choose": dict(
        output_type="multiple_choice",
        doc_to_text="{{question}}",
        doc_to_choice="{{choices}}",
        doc_to_target="{{answer}}",
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    ),
    "complete": dict(
        output_type="loglikelihood",
        doc_to_text="",
        doc_to_target="{{choices[0]}}",
        metric_list=[
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}
        ],
    ),
    "read": dict(
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[
            {
                "metric": "word_perplexity",
                "aggregation": "weighted_perplexity",
                "higher_is_better": False,
            }
        ],
    ),
    "write": dict(
        output_type="generate_until",
        doc_to_text="{{question}}",
        doc_to_target="{{text}}",
        generation_kwargs={"until": ["\n", " cat"], "max_gen_toks": 12},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    ),
}
WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "dogs", "ran", "far", "to", "see", "trees")


@pytest.fixture(scope="module")
def world(build, tmp_path_factory):
    """A folder with a model, a run made of it, and tasks whose texts are longer than it takes."""
    folder = tmp_path_factory.mktemp("world")
    draw = random.Random(0)

    def text(least, most):
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(least, most)))

    config, params = build("gpt_neox", max_length=48)
    save_pretrained(config, params, folder / "model")
    # Few merges, so that the tokens of a text are many.
    tokenizer = tokenization.train([text(500, 500)], 290)
    tokenizer.save(str(folder / "model" / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 48}
    names |= dict.fromkeys(("eos_token", "bos_token"), tokenization.END_OF_TEXT)
    (folder / "model" / "tokenizer_config.json").write_text(json.dumps(names))
    documents = [
        {
            "question": text(1, 25),
            "choices": [text(1, 4) for _ in range(3)],
            "answer": draw.randint(0, 2),
            "text": text(10, 60),
        }
        for _ in range(12)
    ]
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    (folder / "tasks").mkdir()
    for name, fields in TASKS.items():
        source = dict(
            task=name, dataset_path="json", dataset_kwargs={"data_files": {"test": str(data)}}
        )
        task = source | dict(test_split="test") | fields
        (folder / "tasks" / f"{name}.yaml").write_text(json.dumps(task))
    assert main(["import_hf", str(folder / "model"), f"--workdir={folder}/run"]) == 0
    return folder


def answers(model, world):
    """(answers of each task by document, its metrics) of a model of the harness."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(world / "tasks"), include_defaults=False)
    results = lm_eval.simple_evaluate(
        model, tasks=list(TASKS), task_manager=manager, log_samples=True, bootstrap_iters=0
    )
    samples = {
        task: [sample["filtered_resps"] for sample in sorted(some, key=lambda s: s["doc_id"])]
        for task, some in results["samples"].items()
    }
    return samples, results["results"]


def test_every_answer_is_that_of_the_harness_own_model(world):
    from lm_eval.models.huggingface import HFLM

    from bottleneck.pretrained.evaluation import HarnessModel, ends_of_text, tokenizer_of
    from bottleneck.pretrained.scoring import Scorer

    run = runs.load(world / "run")
    tokenizer = tokenizer_of(run)
    begin, end = ends_of_text(tokenizer, run.path / "tokenizer_config.json")
    scorer = Scorer(run.config.model, run.params(), batch_size=8)  # split over four devices
    ours, our_metrics = answers(
        HarnessModel(scorer, tokenizer, begins_with=begin, ends_with=end), world
    )
    theirs, their_metrics = answers(
        HFLM(str(world / "model"), device="cpu", dtype="float32", batch_size=3), world
    )
    for task in ("choose", "complete", "read"):
        for one, other in zip(ours[task], theirs[task], strict=True):
            assert np.asarray(one, float) == pytest.approx(np.asarray(other, float), abs=1e-4)
    assert ours["write"] == theirs["write"]
    assert any(text for (text,) in ours["write"])
    for task, metrics in their_metrics.items():
        for name, value in metrics.items():
            if isinstance(value, float):
                assert our_metrics[task][name] == pytest.approx(value, rel=1e-4), (task, name)


def test_the_verb_prints_and_keeps_what_it_measured(world, capsys):
    names = "choose,read"
    command = ["evaluate", str(world / "run"), f"--tasks={names}", f"--include={world}/tasks"]
    assert main([*command, "--limit=5", "--steps=0"]) == 0
    lines = (world / "run" / "evaluation.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(row["step"], row["task"], row["limit"]) for row in rows] == [
        (0, "choose", 5),
        (0, "read", 5),
    ]
    printed = capsys.readouterr().out
    assert f"{rows[0]['acc']:.4f} ± {rows[0]['acc_stderr']:.4f}" in printed
    assert f"{rows[1]['word_perplexity']:.4f}" in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks=chooose"], "the harness has no task chooose"),
        (["--tasks=choose", "--steps=7"], "has no checkpoint of step 7; it has 0"),
        (["--tasks=choose", "--steps=a"], "argument --steps: invalid list of numbers value"),
        (["--tasks=broken"], "the data of broken cannot be loaded: "),
    ],
)
def test_what_is_not_there_is_one_line(world, capsys, flags, message):
    broken = json.loads((world / "tasks" / "choose.yaml").read_text()) | {"task": "broken"}
    broken["dataset_kwargs"] = {"data_files": {"test": str(world / "absent.jsonl")}}
    (world / "tasks" / "broken.yaml").write_text(json.dumps(broken))
    assert main(["evaluate", str(world / "run"), f"--include={world}/tasks", *flags]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line


def test_a_task_that_asks_for_sampled_text_is_refused(world):
    from bottleneck.pretrained.evaluation import HarnessModel
    from bottleneck.pretrained.scoring import Scorer

    run = runs.load(world / "run")
    tokenizer = tokenization.load(run.path / "tokenizer.json")
    scorer = Scorer(run.config.model, run.params(), batch_size=1)
    model = HarnessModel(scorer, tokenizer, begins_with=0, ends_with=0)

    class Request:
        args = ("the cat", {"do_sample": True, "temperature": 0.8})

    with pytest.raises(UserError, match="only greedy decoding"):
        model.generate_until([Request])
    Request.args = ("the cat", {"max_gen_toks": 48})
    with pytest.raises(UserError, match="takes 48, which leaves no room for a context"):
        model.generate_until([Request])
