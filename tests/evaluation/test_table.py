"""The table of results as text, Markdown and JSON."""

import json

import pytest

from sed_d2.evaluation import make_row, paper_miou, render, write_results

METRICS = {"mIoU": 31.839, "fwIoU": 50.0, "IoU-wall": 70.0, "mACC": 60.25, "pACC": 75.5}
B, L = "convnext_base_w_320", "convnext_large_d_320"


@pytest.fixture
def rows():
    return [
        make_row("ade20k_150_test_sem_seg", METRICS, 2000, 82.4, 31.8),
        make_row("voc_2012_test_background_sem_seg", METRICS | {"mIoU": 100.0}, 1449),
    ]


def test_text(rows):
    lines = render(rows).splitlines()
    assert len(lines) == 4
    assert lines[0].split("  ")[0] == "data set" and lines[0].endswith("paper mIoU")
    assert lines[2].split() == [
        "ade20k_150_test_sem_seg", "2000", "150",
        "31.84", "50.00", "60.25", "75.50", "82.40", "31.80",
    ]  # fmt: skip
    assert lines[3].split() == [
        "voc_2012_test_background_sem_seg", "1449", "21", "100.00", "50.00", "60.25", "75.50",
    ]  # fmt: skip


def test_files(tmp_path, rows):
    folder = tmp_path / "new" / "folder"
    write_results(rows, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["results.json", "results.md"]
    markdown = (folder / "results.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown]
    assert cells[0][3] == "mIoU" and cells[2][3] == "31.84" and cells[3][7:] == ["", ""]
    assert set(markdown[1]) <= set("|-:")
    content = json.loads((folder / "results.json").read_text())
    assert content[0] == {
        "dataset": "ade20k_150_test_sem_seg",
        "images": 2000,
        "classes": 150,
        "mIoU": 31.839,
        "fwIoU": 50.0,
        "mACC": 60.25,
        "pACC": 75.5,
        "ms_per_image": 82.4,
        "paper_mIoU": 31.8,
    }
    assert content[1]["ms_per_image"] is None


def test_no_rows():
    assert "data set" in render([])


def test_the_papers_results():
    assert paper_miou("ade20k_150_test_sem_seg", B, None) == 31.8
    assert paper_miou("ade20k_150_test_sem_seg", B, 8) == 31.6
    assert paper_miou("context_459_test_sem_seg", L, 8) == 22.6
    assert paper_miou("context_459_test_sem_seg", L, 4) is None
    assert paper_miou("coco_2017_test_stuff_all_sem_seg", L, 8) is None
    assert paper_miou("ade20k_150_test_sem_seg", "convnext_tiny", None) is None
