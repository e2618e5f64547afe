"""Text embeddings on disk: reuse, damage, eviction and several processes."""

import logging
import os
import subprocess
import sys

import pytest
import torch

from sed_d2 import Vocabulary
from sed_d2.modeling.clip import text, text_cache
from sed_d2.modeling.clip.text_cache import build_text_cache

from .conftest import CLASSES, NewProcess

ENTRY_BYTES = 4 + 80 * 64 * 4  # a checksum and (P, C) float32


def entries(folder):
    return sorted(folder.glob("*.sedtext"))


def test_a_second_process_reads_the_same_bits_and_makes_no_text_pass(tower, folder):
    fresh, passes = NewProcess(tower, folder)()
    assert passes == 4  # names
    assert len(list(folder.iterdir())) == 3  # classes
    cached, passes = NewProcess(tower, folder)()
    assert passes == 0
    assert torch.equal(cached, fresh)
    assert cached.dtype == torch.float32 and cached.shape == (3, 80, 64)
    assert torch.equal(fresh, NewProcess(tower)()[0])


def test_vocabularies_share_their_classes(tower, folder):
    first, _ = NewProcess(tower, folder)()
    second, passes = NewProcess(tower, folder)((("sky",), ("dog",), ("windowpane", "window")))
    assert passes == 1  # "dog"
    assert torch.equal(second[0], first[2]) and torch.equal(second[2], first[1])
    dog, _ = NewProcess(tower, folder.parent / "other")((("dog",),))
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
def test_a_damaged_entry_is_replaced(tower, folder, caplog, damage):
    fresh, _ = NewProcess(tower, folder)((("cat",), ("sky",)))
    path, other = entries(folder)
    content = path.read_bytes()
    assert len(content) == ENTRY_BYTES
    path.write_bytes(damage(content, other.read_bytes()))
    with caplog.at_level(logging.INFO, "sed_d2"):
        replaced, passes = NewProcess(tower, folder)((("cat",), ("sky",)))
    assert passes == 1
    torch.testing.assert_close(replaced, fresh)
    assert {r.levelno for r in caplog.records} == {logging.INFO}
    assert f"{path} is damaged" in caplog.text
    assert len(path.read_bytes()) == ENTRY_BYTES
    again, passes = NewProcess(tower, folder)((("cat",), ("sky",)))
    assert passes == 0 and torch.equal(again, replaced)


def test_an_entry_that_cannot_be_read_is_embedded_each_time(tower, folder, caplog):
    fresh, _ = NewProcess(tower, folder)()
    path = entries(folder)[0]
    path.unlink()
    path.mkdir()  # a folder in place of the file: reading it is an error, and so is replacing it
    for _ in range(2):
        again, passes = NewProcess(tower, folder)()
        assert 0 < passes < 4
        torch.testing.assert_close(again, fresh)
    assert len(entries(folder)) == 3 and not list(folder.glob("*.tmp"))


PROCESS = """
import sys, time
from pathlib import Path

import open_clip, torch
import sed_d2.shapes
from sed_d2.modeling.clip.build import build_clip
from sed_d2.modeling.clip.templates import PROMPT_TEMPLATES
from sed_d2.modeling.clip.text import TextEncoder
from sed_d2.modeling.clip.text_cache import TextCache, TextKeys

folder, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
torch.manual_seed(0)
clip = build_clip("shapes_convnext_atto").eval()
torch.nn.init.normal_(clip.token_embedding.weight)
tokenizer = open_clip.get_tokenizer("shapes_convnext_atto")
classes = [("cat",), ("windowpane", "window"), ("sky",)]
cache = TextCache(folder / "cache", 10**9)
(folder / f"ready{name}").touch()
while len(list(folder.glob("ready*"))) < count:
    time.sleep(0.01)
text = TextEncoder(clip, tokenizer, cache=cache)(classes)
entries = dict(zip(TextKeys(clip, tokenizer)(classes, PROMPT_TEMPLATES), text))
for _ in range(100):  # the same files again and again, while the others do so too
    cache.write(entries)
    assert all(cache.read(key, torch.empty(80, 64)) for key in entries)
torch.save(text, folder / f"text{name}.pt")
"""


def test_processes_share_a_folder(tower, tmp_path):
    count = 2
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
            assert "MODEL.CLIP.TEXT_CACHE" not in output, output  # no warning
    finally:
        for process in processes:
            process.kill()  # those that wait for one that failed
    cache = tmp_path / "cache"
    assert [path.stat().st_size for path in cache.iterdir()] == [ENTRY_BYTES] * 3
    shared, passes = NewProcess(tower, cache)()
    assert passes == 0
    expected, _ = NewProcess(tower, tmp_path / "alone")()
    torch.testing.assert_close(shared, expected)
    for i in range(count):
        torch.testing.assert_close(torch.load(tmp_path / f"text{i}.pt"), expected)


def test_the_size_is_bounded_and_the_least_recently_used_entries_go_first(tower, folder):
    max_bytes = 3 * ENTRY_BYTES + 10
    for age, name in enumerate(["cat", "dog", "sky"]):
        known = set(entries(folder))
        NewProcess(tower, folder, max_bytes)(((name,),))
        (path,) = set(entries(folder)) - known
        os.utime(path, (1000 + age, 1000 + age))
    assert NewProcess(tower, folder, max_bytes)((("cat",),))[1] == 0  # and is the last used now
    NewProcess(tower, folder, max_bytes)((("grass",),))
    assert len(entries(folder)) == 3
    for name, passes in {"cat": 0, "sky": 0, "grass": 0, "dog": 1}.items():
        assert NewProcess(tower, folder, max_bytes)(((name,),))[1] == passes, name


def test_a_vocabulary_larger_than_the_bound_is_embedded_in_full(tower, folder):
    classes = tuple((f"thing {i}",) for i in range(5))
    embeddings, _ = NewProcess(tower, folder, 2 * ENTRY_BYTES)(classes)
    expected, _ = NewProcess(tower, folder.parent / "other")(classes)
    assert torch.equal(embeddings, expected)
    assert len(entries(folder)) == 2
    NewProcess(tower, folder, ENTRY_BYTES - 1)((("thing",),))
    assert not entries(folder)


def test_only_files_of_the_cache_are_deleted(tower, folder):
    folder.mkdir(parents=True)
    foreign = folder / "thesis.tex"
    abandoned, unfinished = folder / ".1.sedtext.tmp", folder / ".2.sedtext.tmp"
    for path in (foreign, abandoned, unfinished):
        path.write_bytes(bytes(100))
    for path in (foreign, abandoned):
        os.utime(path, (0, 0))
    NewProcess(tower, folder, max_bytes=1)()
    assert set(folder.iterdir()) == {foreign, unfinished}


def test_a_folder_that_cannot_be_written_is_one_warning(tower, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        caplog.clear()
        process = NewProcess(tower, folder)
        with caplog.at_level(logging.WARNING):
            embeddings, passes = process()
            assert passes == 4
            assert process(CLASSES[::-1])[1] == 4
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert str(folder) in record.getMessage() and "TEXT_CACHE" in record.getMessage()
        expected, _ = NewProcess(tower, tmp_path / "other")()
        assert torch.equal(embeddings, expected)
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_full_disk_leaves_nothing_half_written(tower, folder, caplog, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(text_cache.os, "replace", full)
    embeddings, _ = NewProcess(tower, folder)()
    assert "No space left on device" in caplog.text
    assert not list(folder.iterdir())
    monkeypatch.undo()
    assert torch.equal(NewProcess(tower, folder)()[0], embeddings)


def test_a_killed_process_loses_only_its_last_batch(tower, folder, monkeypatch):
    monkeypatch.setattr(text, "CLASSES_PER_WRITE", 2)
    process = NewProcess(tower, folder)
    embed = process.encoder._embed_classes

    def killed(classes):
        if ("sky",) in classes:
            raise KeyboardInterrupt
        return embed(classes)

    monkeypatch.setattr(process.encoder, "_embed_classes", killed)
    with pytest.raises(KeyboardInterrupt):
        process()
    assert NewProcess(tower, folder)()[1] == 1


def test_the_default_folder_is_in_the_hub_folder_of_torch(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    first = tiny_model("MODEL.CLIP.TEXT_CACHE_GB", 1)
    assert first.text_encoder.cache.max_bytes == 10**9
    before = first.text_embeddings()
    assert len(entries(tmp_path / "home" / "hub" / "sed_d2" / "text")) == 3

    second = tiny_model("MODEL.CLIP.TEXT_CACHE_GB", 1)
    second.set_vocabulary(Vocabulary.from_names(["sky", "cat"]))
    monkeypatch.setattr(second.text_encoder, "_embed", None)  # a text pass would be an error
    assert torch.equal(second.text_embeddings(), before[[2, 0]])


def test_the_config_names_the_folder(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny_model("MODEL.CLIP.TEXT_CACHE_GB", 1, "MODEL.CLIP.TEXT_CACHE", "~/cache").text_embeddings()
    assert len(entries(tmp_path / "cache")) == 3


def test_size_0_writes_nothing(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    tiny_model(
        "MODEL.CLIP.TEXT_CACHE_GB", 0, "MODEL.CLIP.TEXT_CACHE", str(tmp_path / "cache")
    ).text_embeddings()
    assert not list(tmp_path.iterdir())


def test_a_negative_size_is_refused():
    with pytest.raises(ValueError, match="TEXT_CACHE_GB -1 is negative"):
        build_text_cache("", -1)
