"""Errors that a user can fix are one sentence; others keep their traceback."""

import logging

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

from sed_d2 import get_sed_cfg
from sed_d2.cli.errors import one_sentence


def message_of(action) -> str:
    with pytest.raises(SystemExit) as caught:
        one_sentence()(action)()
    assert isinstance(caught.value.code, str)  # Python prints it to stderr and exits with 1
    assert "\n" not in caught.value.code
    return caught.value.code


def raising(error):
    def action():
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("no class names: give some"), "error: no class names: give some"),
        (FileNotFoundError("a.pth does not exist"), "error: a.pth does not exist"),
        (OSError(28, "No space left on device", "x"), "error: [Errno 28] No space left on device"),
        (ValueError("two\n  lines"), "error: two lines"),
        (ValueError(), "error: ValueError"),
    ],
)
def test_an_error_of_the_user_is_one_sentence(error, message):
    assert message_of(raising(error)).startswith(message)


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyError("bug"), AssertionError("bug")])
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error), match="bug"), one_sentence():
        raise error


def test_a_success_returns_its_value():
    assert one_sentence()(lambda: 3)() == 3


@pytest.mark.parametrize(
    ("content", "opts", "expected"),
    [
        ("MODEL: {NO_SUCH_KEY: 1}", [], "MODEL.NO_SUCH_KEY"),
        ("MODEL: {WEIGHTS: [1]}", [], "MODEL.WEIGHTS"),
        ("MODEL: [", [], "line 1"),
        ("{}", ["TEST.NO_SUCH_KEY", "1"], "TEST.NO_SUCH_KEY"),
        ("{}", ["TEST.TOPK"], "odd length"),
    ],
)
def test_a_wrong_config_is_one_sentence(tmp_path, content, opts, expected):
    path = tmp_path / "config.yaml"
    path.write_text(content)
    message = message_of(lambda: get_sed_cfg(path, opts))
    assert expected in message
    assert message.endswith("; check the config file and the KEY VALUE pairs")


def test_a_missing_config_file_is_named(tmp_path):
    assert "gone.yaml" in message_of(lambda: get_sed_cfg(tmp_path / "gone.yaml"))


def test_unknown_models_and_data_sets_are_named(tiny_cfg):
    assert "NoSuchArch" in message_of(
        lambda: build_model(tiny_cfg("MODEL.META_ARCHITECTURE", "NoSuchArch"))
    )
    assert "no_such_data" in message_of(lambda: DatasetCatalog.get("no_such_data"))


class BrokenDataset(torch.utils.data.Dataset):
    """Data set whose only item raises an error."""

    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 1

    def __getitem__(self, index):
        try:
            raise KeyError("the cause")
        except KeyError as cause:
            raise self.error from cause


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ValueError("the image a.jpg is empty: replace it"),
            "the image a.jpg is empty: replace it",
        ),
        (FileNotFoundError("b.png is missing\nin c"), "b.png is missing in c"),
    ],
)
def test_an_error_of_a_data_loader_worker_is_the_sentence_of_its_cause(error, message):
    loader = torch.utils.data.DataLoader(BrokenDataset(error), num_workers=1)
    assert message_of(lambda: next(iter(loader))) == f"error: {message}"


def test_the_traceback_is_logged_at_debug_level(caplog):
    with caplog.at_level(logging.DEBUG, logger="sed_d2.cli"):
        message_of(raising(ValueError("wrong")))
    assert "Traceback" in caplog.text and "ValueError: wrong" in caplog.text
