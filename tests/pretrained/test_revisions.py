"""Steps in the names of revisions and of folders."""

import pytest

from bottleneck.pretrained.revisions import step_of_folder, step_of_revision


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step0", 0),
        ("step143000", 143_000),
        ("step-20", 20),
        ("step_20", 20),
        ("step", None),
        ("step20-tokens8B", None),
        ("main", None),
        ("1000", None),
    ],
)
def test_a_revision_names_its_step_alone(name, step):
    assert step_of_revision(name) == step


@pytest.mark.parametrize(
    ("name", "step"),
    [("step1000", 1000), ("1000", 1000), ("iter_0020", 20), ("step20b", None), (".step20", None)],
)
def test_a_folder_ends_in_its_step(name, step):
    assert step_of_folder(name) == step
