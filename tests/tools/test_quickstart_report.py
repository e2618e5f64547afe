"""The report of the embedded model: its tables, its page, and how it trains ablations."""

import argparse
import json

from sed_d2.shapes import ablations
from tools import quickstart_report as report
from tools.page import find_marked


def test_the_page_has_the_tables_of_the_recorded_figures():
    figures = json.loads(report.FIGURES.read_text())
    for part, (_, table) in report.PARTS.items():
        if table is not None:
            text = find_marked(report.PAGE, part)[0]
            assert table(figures[part]["rows"]) in text and figures[part]["machine"] in text


def test_the_table_of_early_rejection_compares_with_all_classes_kept():
    row = {"classes": 50, "k": 0, "mIoU": 80.0, "objects": 70.0, "survivors": 50, "ms": 300}
    table = report.rejection_table([row, {**row, "k": 8, "mIoU": 79.75, "ms": 100}])
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert cells[2] == ["50", "all", "80.00", "+0.00", "50", "300", "1.0"]
    assert cells[3] == ["50", "8", "79.75", "-0.25", "50", "100", "3.0"]


def test_a_part_is_measured_and_written_into_the_page(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("<!-- begin scores -->\nold\n<!-- end scores -->\n")
    (tmp_path / "figures.json").write_text('{"recorded": "kept"}')
    both = {"mIoU": 86.13, "objects": 84.9, "survivors": 92, "ms": 133}
    rows = [{"k": 0, "seen": both, "unseen": both}, {"k": 8, "seen": both, "unseen": both}]
    monkeypatch.setattr(report, "PAGE", page)
    monkeypatch.setattr(report, "FIGURES", tmp_path / "figures.json")
    monkeypatch.setitem(report.PARTS, "scores", (lambda args: rows, report.score_table))
    report.main(["scores"])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["scores"]["rows"] == rows and figures["recorded"] == "kept"
    text = page.read_text()
    assert "| early rejection, k = 8 | 86.1" in text and "torch" in text and "old" not in text


def test_rejection_is_measured_for_each_size_and_k(monkeypatch):
    def score_splits(predictor, count, names):
        result = {"mIoU": predictor, "survivors": len(names), "ms": count}
        return {"seen": result, "unseen": {**result, "mIoU": predictor + 1}}

    monkeypatch.setattr(report, "load_embedded", lambda k: k)
    monkeypatch.setattr(report, "score_splits", score_splits)
    rows = report.measure_rejection(argparse.Namespace(rejection_scenes=3))
    assert len(rows) == len(report.SIZES) * 6
    assert rows[7] == {"classes": 150, "k": 1, "mIoU": 1.5, "survivors": 150, "ms": 3}


def test_ablations_train_from_the_given_clip_each_in_its_own_folder(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(
        report.subprocess, "run", lambda command, check, env: commands.append((command, env))
    )
    monkeypatch.setattr(report, "OpenVocabPredictor", lambda cfg: cfg)
    monkeypatch.setattr(report, "score_splits", lambda cfg, count: {"seen": cfg.MODEL.WEIGHTS})
    args = argparse.Namespace(
        clip=tmp_path / "clip.pt", output=tmp_path, iterations=7, processes=2, rejection_scenes=3
    )
    rows = report.measure_ablations(args)
    assert [row["variant"] for row in rows] == list(ablations.VARIANTS)
    folders = {row["seen"] for row in rows}
    assert len(folders) == len(rows) == len(commands)
    for (command, env), pairs in zip(commands, ablations.VARIANTS.values(), strict=True):
        assert set(pairs) <= set(command) and str(tmp_path / "clip.pt") in command
        assert command[command.index("SOLVER.MAX_ITER") + 1] == "7"
        assert env["OMP_NUM_THREADS"] == "1"
