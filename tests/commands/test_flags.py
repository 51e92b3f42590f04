"""The command line: each mistake is one line and exit code 2, soon and before any array."""

import subprocess
import sys

import pytest

from bottleneck.__main__ import main
from bottleneck.commands.flags import load_config
from bottleneck.errors import UserError

NANO = "configs/nano.py"


def test_overrides_are_typed_and_reach_the_config():
    config = load_config(
        NANO,
        {
            "model.head_rank": "7",
            "optimizer.learning_rate": "1e-4",
            "probe.ranks": "3,5",
            "data.tokenizer": "t.json",
        },
    )
    assert config.model.head_rank == 7
    assert config.optimizer.learning_rate == 1e-4
    assert config.probe.ranks == (3, 5)
    assert config.data.tokenizer == "t.json"


def test_none_clears_an_optional_field(tmp_path):
    path = tmp_path / "ranked.py"
    path.write_text(
        "from bottleneck.config import base\n"
        "def get_config(rank):\n"
        "    config = base()\n"
        "    config.model.head_rank = int(rank)\n"
        "    return config\n"
    )
    assert load_config(f"{path}:12", {}).model.head_rank == 12
    assert load_config(f"{path}:12", {"model.head_rank": "None"}).model.head_rank is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_module", "ModuleNotFoundError at .*config.py:1"),
        ("def get_config():\n    return 1 / 0", "ZeroDivisionError at config.py:2"),
        ("def get_config():\n    return 3", r"get_config\(\) must return a ConfigDict"),
        ("def get_config(:", "SyntaxError"),
        (
            "from bottleneck.config import base\n"
            "def get_config():\n    c = base()\n    c.model.d_modle = 3\n    return c",
            "did you mean|Did you mean",
        ),
    ],
)
def test_an_error_inside_a_config_file_is_one_line(tmp_path, source, message):
    path = tmp_path / "config.py"
    path.write_text(source)
    with pytest.raises(UserError, match=message) as raised:
        load_config(str(path), {})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config.model.head_rnk=4"],
            "config.model.head_rnk is not a field; did you mean model.head_rank",
        ),
        (
            ["--config.modl.d_model=4"],
            "config.modl.d_model is not a field; did you mean model.d_model",
        ),
        (["--config.model.d_model=abc"], "config.model.d_model=abc"),
        (["--config.model.d_model", "4"], "the form --config.FIELD=VALUE"),
        (["--config.model.d_model=None"], "config.model.d_model=None"),
        (["--config.model.head_rank=129"], "at most model.d_model=128"),
        (["--config.compute.mesh.fsdp=3"], "train.batch_size=16"),
        (["--config=absent.py"], "'absent.py' is not a file"),
        (["--config.data.tokenizer=absent.json"], "absent.json"),
    ],
)
def test_a_bad_command_line_exits_with_2_and_one_line(capsys, tmp_path, arguments, message):
    code = main(["train", f"--workdir={tmp_path}/run", f"--config={NANO}", *arguments])
    output = capsys.readouterr()
    assert code == 2
    assert message in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""
    assert not (tmp_path / "run").exists()


def test_a_bad_value_is_reported_before_jax_is_imported():
    command = [sys.executable, "-X", "importtime", "-m", "bottleneck", "train"]
    command += ["--workdir=unused", f"--config={NANO}", "--config.model.head_rank=500"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert "| jax" not in result.stderr


def test_a_misspelt_verb_names_the_nearest(capsys):
    assert main(["trian"]) == 2
    assert "did you mean train" in capsys.readouterr().err


def test_usage_lists_every_verb_with_its_summary(capsys):
    assert main(["--help"]) == 0
    output = capsys.readouterr().out
    for verb in ("train", "analyze", "prepare"):
        assert f"  {verb} " in output
