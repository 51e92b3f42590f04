"""`prepare` makes, mends and checks the tokens of a config."""

import json

import pytest

from bottleneck.commands.prepare import main
from bottleneck.errors import UserError


@pytest.fixture
def arguments(tmp_path) -> list[str]:
    texts = [f"document {i} of one hundred" for i in range(100)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "corpus.jsonl").write_text(lines)
    return [
        "--config=configs/nano.py",
        "--config.data.corpus=text",
        f"--config.data.paths='{tmp_path}/corpus.jsonl',",
        f"--config.data.cache_dir={tmp_path}/cache",
        "--config.data.tokenizer_vocab_size=300",
        "--config.data.validation_fraction=0.1",
    ]


def test_prepare_makes_the_tokens_once(arguments, capsys):
    assert main(arguments) == main(arguments) == 0
    made, found = capsys.readouterr().err.splitlines()[-2:]
    assert made.startswith("tokens: made ") and found == made.replace("made", "found", 1)


def test_verify_finds_a_flipped_bit_and_rebuild_mends_it(arguments, tmp_path, capsys):
    main([*arguments, "--verify"])
    assert "matches its manifest" in capsys.readouterr().out
    (shard,) = (tmp_path / "cache").glob("*/train-00000.bin")
    contents = shard.read_bytes()
    shard.write_bytes(bytes([contents[0] ^ 1]) + contents[1:])
    with pytest.raises(UserError, match=r"train-00000\.bin is damaged"):
        main([*arguments, "--verify"])
    assert main([*arguments, "--rebuild", "--verify"]) == 0
    assert shard.read_bytes() == contents


def test_a_changed_corpus_is_tokenized_anew_when_asked(arguments, tmp_path):
    main(arguments)
    with (tmp_path / "corpus.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(UserError, match="the corpus has changed"):
        main(arguments)
    assert main([*arguments, "--rebuild"]) == 0
    assert main(arguments) == 0
