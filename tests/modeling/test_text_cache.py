"""Text embeddings on disk: what is reused, what is made again, what is deleted, who may share."""

import logging
import os
import subprocess
import sys

import pytest
import torch

from sed_d2 import Vocabulary
from sed_d2.modeling import text_cache, text_encoder
from sed_d2.modeling.clip.text import TextEncoder
from sed_d2.modeling.clip.text_cache import build_text_cache
from tests.modeling.conftest import CLASSES, Start

ENTRY_BYTES = 4 + 80 * 64 * 4  # a checksum and (P, C) float32


def entries(folder):
    return sorted(folder.glob("*.sedtext"))


def test_a_second_start_reads_the_same_bits_and_makes_no_text_pass(tower, folder):
    fresh, passes = Start(tower, folder)()
    assert passes == 4  # names
    assert len(list(folder.iterdir())) == 3  # classes
    cached, passes = Start(tower, folder)()
    assert passes == 0
    assert torch.equal(cached, fresh)
    assert cached.dtype == torch.float32 and cached.shape == (3, 80, 64)
    assert torch.equal(
        fresh, TextEncoder(tower, Start(tower, folder).encoder.tokenizer, 80)(CLASSES)
    )


def test_vocabularies_share_their_classes(tower, folder):
    first, _ = Start(tower, folder)()
    second, passes = Start(tower, folder)((("sky",), ("dog",), ("windowpane", "window")))
    assert passes == 1  # "dog"
    assert torch.equal(second[0], first[2]) and torch.equal(second[2], first[1])
    dog, _ = Start(tower, folder.parent / "other")((("dog",),))
    torch.testing.assert_close(second[1], dog[0])


DAMAGE = {
    "empty": lambda content, other: b"",
    "only the checksum": lambda content, other: content[:4],
    "truncated": lambda content, other: content[:-1],
    "longer": lambda content, other: content + b"\0",
    "another shape": lambda content, other: content[: 4 + 40 * 64 * 4],
    "another checksum": lambda content, other: bytes([content[0] ^ 1]) + content[1:],
    "one bit": lambda content, other: content[:-1] + bytes([content[-1] ^ 1]),
    "zeros": lambda content, other: bytes(len(content)),
    "another class": lambda content, other: other,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_entry_is_made_again(tower, folder, caplog, damage):
    fresh, _ = Start(tower, folder)((("cat",), ("sky",)))
    path, other = entries(folder)
    content = path.read_bytes()
    assert len(content) == ENTRY_BYTES
    path.write_bytes(damage(content, other.read_bytes()))
    with caplog.at_level(logging.INFO, "sed_d2"):
        mended, passes = Start(tower, folder)((("cat",), ("sky",)))
    assert passes == 1
    torch.testing.assert_close(mended, fresh)
    assert {r.levelno for r in caplog.records} == {logging.INFO}
    assert f"{path} is damaged: it is made again" in caplog.text
    assert len(path.read_bytes()) == ENTRY_BYTES
    again, passes = Start(tower, folder)((("cat",), ("sky",)))
    assert passes == 0 and torch.equal(again, mended)


def test_an_entry_that_cannot_be_read_is_made_again(tower, folder, caplog):
    fresh, _ = Start(tower, folder)()
    path = entries(folder)[0]
    path.unlink()
    path.mkdir()  # a folder in place of the file: reading it is an error, and so is replacing it
    for _ in range(2):
        again, passes = Start(tower, folder)()
        assert 0 < passes < 4
        torch.testing.assert_close(again, fresh)
    assert len(entries(folder)) == 3 and not list(folder.glob("*.tmp"))


PROCESS = """
import sys, time
from pathlib import Path

import open_clip, torch
from sed_d2.modeling.clip.convnext import build_clip
from sed_d2.modeling.clip.text_cache import TextCache, TextKeys
from sed_d2.modeling.clip.text import PROMPT_TEMPLATES, TextEncoder

folder, me, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
torch.manual_seed(0)
clip = build_clip("shapes_convnext_atto").eval()
torch.nn.init.normal_(clip.token_embedding.weight)
tokenizer = open_clip.get_tokenizer("shapes_convnext_atto")
classes = [("cat",), ("windowpane", "window"), ("sky",)]
cache = TextCache(folder / "cache", 10**9)
(folder / f"ready{me}").touch()
while len(list(folder.glob("ready*"))) < count:
    time.sleep(0.01)
text = TextEncoder(clip, tokenizer, cache=cache)(classes)
entries = dict(zip(TextKeys(clip, tokenizer)(classes, PROMPT_TEMPLATES), text))
for _ in range(100):  # the same files again and again, while the others do so too
    cache.write(entries)
    assert all(cache.read(key, torch.empty(80, 64)) for key in entries)
torch.save(text, folder / f"text{me}.pt")
"""


def test_processes_share_a_folder(tower, tmp_path):
    count = 3
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(tmp_path), str(i), str(count)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(count)
    ]
    try:
        for process in processes:
            output, _ = process.communicate(timeout=600)
            assert process.returncode == 0, output
            assert "cannot be kept" not in output, output
    finally:
        for process in processes:
            process.kill()  # those that wait for one that failed
    cache = tmp_path / "cache"
    assert [path.stat().st_size for path in cache.iterdir()] == [ENTRY_BYTES] * 3
    ours, passes = Start(tower, cache)()
    assert passes == 0
    expected, _ = Start(tower, tmp_path / "alone")()
    torch.testing.assert_close(ours, expected)
    for i in range(count):
        torch.testing.assert_close(torch.load(tmp_path / f"text{i}.pt"), expected)


def test_the_bound_holds_and_the_entries_not_used_for_longest_go_first(tower, folder):
    bound = 3 * ENTRY_BYTES + 10
    for age, name in enumerate(["cat", "dog", "sky"]):
        known = set(entries(folder))
        Start(tower, folder, bound)(((name,),))
        (path,) = set(entries(folder)) - known
        os.utime(path, (1000 + age, 1000 + age))
    assert Start(tower, folder, bound)((("cat",),))[1] == 0  # and is the last used now
    Start(tower, folder, bound)((("grass",),))
    assert len(entries(folder)) == 3
    for name, passes in {"cat": 0, "sky": 0, "grass": 0, "dog": 1}.items():
        assert Start(tower, folder, bound)(((name,),))[1] == passes, name


def test_a_vocabulary_larger_than_the_bound_is_embedded_in_full(tower, folder):
    classes = tuple((f"thing {i}",) for i in range(5))
    ours, _ = Start(tower, folder, 2 * ENTRY_BYTES)(classes)
    expected, _ = Start(tower, folder.parent / "other")(classes)
    assert torch.equal(ours, expected)
    assert len(entries(folder)) == 2
    Start(tower, folder, ENTRY_BYTES - 1)((("thing",),))
    assert not entries(folder)


def test_only_files_of_the_cache_are_deleted(tower, folder):
    folder.mkdir(parents=True)
    mine = folder / "thesis.tex"
    abandoned, unfinished = folder / ".1.sedtext.tmp", folder / ".2.sedtext.tmp"
    for path in (mine, abandoned, unfinished):
        path.write_bytes(bytes(100))
    for path in (mine, abandoned):
        os.utime(path, (0, 0))
    Start(tower, folder, max_bytes=1)()
    assert set(folder.iterdir()) == {mine, unfinished}


def test_a_folder_that_cannot_be_written_is_one_warning(tower, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        caplog.clear()
        start = Start(tower, folder)
        with caplog.at_level(logging.WARNING):
            ours, passes = start()
            assert passes == 4
            assert start()[1] == 4
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert str(folder) in record.getMessage() and "TEXT_CACHE" in record.getMessage()
        expected, _ = Start(tower, tmp_path / "other")()
        assert torch.equal(ours, expected)
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_full_disk_leaves_nothing_half_written(tower, folder, caplog, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(text_cache.os, "replace", full)
    ours, _ = Start(tower, folder)()
    assert "No space left on device" in caplog.text
    assert not list(folder.iterdir())
    monkeypatch.undo()
    assert torch.equal(Start(tower, folder)()[0], ours)


def test_a_killed_start_loses_only_what_it_was_at(tower, folder, monkeypatch):
    monkeypatch.setattr(text_encoder, "_CLASSES_AT_ONCE", 2)
    start = Start(tower, folder)
    embed = start.encoder._embed_classes

    def killed(classes):
        if ("sky",) in classes:
            raise KeyboardInterrupt
        return embed(classes)

    monkeypatch.setattr(start.encoder, "_embed_classes", killed)
    with pytest.raises(KeyboardInterrupt):
        start()
    assert Start(tower, folder)()[1] == 1


def test_the_default_folder_is_in_torch_s_and_the_model_uses_it(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    first = tiny_model("MODEL.CLIP.TEXT_CACHE_GB", 1)
    assert first.text_encoder.cache.max_bytes == 10**9
    before = first.text_embeddings()
    assert len(entries(tmp_path / "home" / "hub" / "sed_d2" / "text")) == 3

    second = tiny_model("MODEL.CLIP.TEXT_CACHE_GB", 1)
    second.set_vocabulary(Vocabulary.from_names(["sky", "cat"]))
    monkeypatch.setattr(second.text_encoder, "_embed", None)  # a text pass would be an error
    assert torch.equal(second.text_embeddings(), before[[2, 0]])


def test_a_folder_of_one_s_own(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny_model("MODEL.CLIP.TEXT_CACHE_GB", 1, "MODEL.CLIP.TEXT_CACHE", "~/own").text_embeddings()
    assert len(entries(tmp_path / "own")) == 3


def test_without_a_cache_nothing_is_written(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    tiny_model(
        "MODEL.CLIP.TEXT_CACHE_GB", 0, "MODEL.CLIP.TEXT_CACHE", str(tmp_path / "own")
    ).text_embeddings()
    assert not list(tmp_path.iterdir())


def test_a_negative_bound_is_an_error():
    with pytest.raises(ValueError, match="TEXT_CACHE_GB -1 is negative"):
        build_text_cache("", -1)
