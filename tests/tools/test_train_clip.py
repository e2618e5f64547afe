"""The command that trains the small CLIP: its options, its log, its errors."""

import re

import pytest

from tools import train_clip

FEW_STEPS = [
    *("--steps", "2", "0", "1", "--batch", "4", "1", "1", "--period", "2"),
    *("--eval-pictures", "4", "--workers", "0"),
]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """The output folder of a run of three steps."""
    folder = tmp_path_factory.mktemp("clip")
    train_clip.main(["--output", str(folder), *FEW_STEPS])
    return folder


def test_the_log_has_seen_and_unseen_accuracy(output):
    assert (output / "clip.pt").is_file()
    log = (output / "log.txt").read_text()
    assert re.findall(r'"step": (\d)', log) == ["2", "3"]
    for name in ("crops_seen", "pairs_unseen", "scenes_seen", "scenes_unseen"):
        assert f'"{name}": ' in log


def test_another_recipe_does_not_continue_a_run(output):
    with pytest.raises(SystemExit) as error:
        train_clip.main(["--output", str(output), "--lr", "0.1", *FEW_STEPS])
    assert "last.pth was trained with" in str(error.value)
    assert "another output folder" in str(error.value)
