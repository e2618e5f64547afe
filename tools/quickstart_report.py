"""Measure the embedded model and write the tables and pictures of docs/quickstart.md.

    python tools/quickstart_report.py recorded scores rejection pictures
    python tools/quickstart_report.py ablations                     # after make quickstart

The scenes are those of the validation splits, which no model was trained on. The results of each
part are kept in docs/quickstart/figures.json, so that a part can be measured without the others.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tabulate import tabulate
from tqdm import tqdm

from sed_d2 import OpenVocabPredictor, get_sed_cfg
from sed_d2.cli.errors import one_sentence
from sed_d2.data.files import write_whole
from sed_d2.device import keep_freed_memory
from sed_d2.shapes import ablations, vocabulary_of_size
from sed_d2.shapes.embedded import CONFIG_FILE, get_embedded_cfg
from sed_d2.shapes.scores import SPLITS, draw_comparison, score_splits
from sed_d2.visualization import save_picture

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script's own folder is on the path, its parent is not

from tools.page import describe_machine, update_page  # noqa: E402

#: Scenes of each split for the results that the tests hold the shipped weights to.
RECORDED_SCENES = 32
PAGE = ROOT / "docs" / "quickstart.md"
FOLDER = ROOT / "docs" / "quickstart"
FIGURES = FOLDER / "figures.json"
QUICKSTART = ROOT / "output" / "quickstart"
CPU = ("MODEL.DEVICE", "cpu")
TOP_K = (1, 2, 4, 8, 16)
SIZES = (50, 150, 459, 847)


def load_embedded(top_k: int) -> OpenVocabPredictor:
    """Load the embedded model on the CPU; a pixel keeps ``top_k`` classes, or all for 0."""
    early_rejection = ("TEST.FAST_INFERENCE", top_k > 0, "TEST.TOPK", max(top_k, 1))
    return OpenVocabPredictor(get_embedded_cfg([*early_rejection, *CPU]))


def measure_recorded(args: argparse.Namespace) -> list[dict]:
    """Measure what the tests hold the shipped weights to."""
    results = score_splits(load_embedded(0), RECORDED_SCENES)
    return [{"kind": kind, **result} for kind, result in results.items()]


def measure_scores(args: argparse.Namespace) -> list[dict]:
    """Measure both splits with all classes kept and with early rejection."""
    return [{"k": k, **score_splits(load_embedded(k), args.scenes)} for k in (0, 8)]


def measure_rejection(args: argparse.Namespace) -> list[dict]:
    """Compare early rejection with all classes kept, by size of the vocabulary."""
    rows = []
    for size, k in tqdm([*itertools.product(SIZES, (0, *TOP_K))], unit="case"):
        results = score_splits(load_embedded(k), args.rejection_scenes, vocabulary_of_size(size))
        seen, unseen = results.values()
        means = {key: round(statistics.mean((seen[key], unseen[key])), 2) for key in seen}
        rows.append({"classes": size, "k": k, **means})
    return rows


def measure_ablations(args: argparse.Namespace) -> list[dict]:
    """Train each variant for a short while from the same CLIP, and score it."""
    rows = []
    # As in the Makefile: its data, and one thread for each process.
    data = {"DETECTRON2_DATASETS": str(QUICKSTART / "datasets"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "train_net.py"), "--resume"]
    command += ["--config-file", CONFIG_FILE, "--num-gpus", str(args.processes)]
    for variant, pairs in ablations.VARIANTS.items():
        output = args.output / variant.replace(" ", "_")
        opts = ablations.training_options(variant, args.clip, args.iterations, output)
        subprocess.run([*command, *opts], check=True, env={**os.environ, **data})
        weights = ("MODEL.WEIGHTS", str(output / "model_final.pth"))
        predictor = OpenVocabPredictor(get_sed_cfg(CONFIG_FILE, [*CPU, *pairs, *weights]))
        results = score_splits(predictor, args.rejection_scenes)
        rows.append({"variant": variant, "iterations": args.iterations, **results})
    return rows


def make_table(header: str, body: list[list]) -> str:
    """Make a Markdown table; ``|`` separates the columns of the header."""
    return tabulate(body, header.split("|"), tablefmt="github", disable_numparse=True)


def score_cells(row: dict) -> list[str]:
    """Return the mIoU of all classes and of the objects alone, seen and unseen."""
    return [f"{row[kind][key]:.1f}" for kind in SPLITS for key in ("mIoU", "objects")]


def score_table(rows: list[dict]) -> str:
    """Make the table of the scores by split."""
    names = {0: "all classes kept", 8: "early rejection, k = 8"}
    return make_table(
        "|seen: mIoU|objects only|unseen: mIoU|objects only|ms an image",
        [[names[row["k"]], *score_cells(row), row["seen"]["ms"]] for row in rows],
    )


def rejection_table(rows: list[dict]) -> str:
    """Make the table of mIoU, survivors and time by size of the vocabulary and k."""
    body, all_kept = [], {row["classes"]: row for row in rows if not row["k"]}
    for row in rows:
        full = all_kept[row["classes"]]
        mious = (f"{row['mIoU']:.2f}", f"{row['mIoU'] - full['mIoU']:+.2f}")
        times = (round(row["ms"]), f"{full['ms'] / row['ms']:.1f}")
        body.append([row["classes"], row["k"] or "all", *mious, row["survivors"], *times])
    return make_table("classes|k|mIoU|against all kept|survivors|ms an image|times faster", body)


def ablation_table(rows: list[dict]) -> str:
    """Make the table of the scores by variant."""
    return make_table(
        "variant|iterations|seen|objects only|unseen|objects only",
        [[row["variant"], row["iterations"], *score_cells(row)] for row in rows],
    )


def draw_pictures() -> None:
    """Draw scenes of both splits with true and predicted labels."""
    predictor = load_embedded(8)
    for kind, split in SPLITS.items():
        save_picture(draw_comparison(predictor, split, 3), FOLDER / f"{kind}.jpg")


PARTS = {
    "recorded": (measure_recorded, None),
    "scores": (measure_scores, score_table),
    "rejection": (measure_rejection, rejection_table),
    "ablations": (measure_ablations, ablation_table),
}


@one_sentence()
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the parts that the command line names, and write them into the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts", nargs="+", choices=[*PARTS, "pictures"], metavar="PART",
        help=f"of {', '.join(PARTS)} and pictures",
    )  # fmt: skip
    for option, default, text in (
        ("scenes", 200, "scenes of each split for the scores"),
        ("rejection-scenes", 20, "scenes of each split for early rejection and the ablations"),
        ("iterations", 120, "iterations of each ablation's training"),
        ("processes", 2, "processes that train an ablation"),
        ("clip", QUICKSTART / "clip" / "clip.pt", "CLIP of the ablations"),
        ("output", QUICKSTART / "ablations", "folder of the ablations' trainings"),
    ):
        parser.add_argument(
            f"--{option}", type=type(default), default=default, help=f"{text} (%(default)s)"
        )
    args = parser.parse_args(arguments)
    keep_freed_memory("cpu")
    figures = json.loads(FIGURES.read_text())
    machine = describe_machine(torch.device("cpu"), torch.get_num_threads())
    for part in args.parts:
        if part == "pictures":
            draw_pictures()
            continue
        measure, table = PARTS[part]
        figures[part] = {"machine": machine, "rows": measure(args)}
        write_whole(FIGURES, lambda file: file.write(json.dumps(figures, indent=1).encode()))
        if table is not None:
            update_page(PAGE, part, f"{table(figures[part]['rows'])}\n\n({machine})\n")


if __name__ == "__main__":
    main()
