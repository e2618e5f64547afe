"""Measure the embedded model and write the tables and pictures of docs/quickstart.md.

    python tools/quickstart_report.py recorded scores rejection pictures
    python tools/quickstart_report.py ablations                     # after make quickstart

The scenes are those of the validation splits, drawn anew; no model was trained on them. Figures are
kept in docs/quickstart/figures.json, so that each part can be measured by itself.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Run as a script, the folder of `tools` is not among those that modules are looked for in.
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from tabulate import tabulate  # noqa: E402
from tqdm import tqdm  # noqa: E402

from sed_d2.cli.errors import one_sentence
from sed_d2.config import get_sed_cfg  # noqa: E402
from sed_d2.data.files import read_image, write_whole  # noqa: E402
from sed_d2.device import keep_freed_memory  # noqa: E402
from sed_d2.evaluation.metrics import ConfusionMatrix, segmentation_metrics  # noqa: E402
from sed_d2.predictor import OpenVocabPredictor, Prediction  # noqa: E402
from sed_d2.shapes import scenes as shapes  # noqa: E402
from sed_d2.shapes.embedded import CONFIG_FILE, get_embedded_cfg  # noqa: E402
from sed_d2.visualization import draw_overlay, save_picture  # noqa: E402
from sed_d2.vocabulary import Vocabulary  # noqa: E402
from tools.page import describe_machine, update_page  # noqa: E402

RECORDED_SCENES = 32
PAGE = ROOT / "docs" / "quickstart.md"
FOLDER = ROOT / "docs" / "quickstart"
QUICKSTART = ROOT / "output" / "quickstart"
FIGURES = FOLDER / "figures.json"
SPLITS = {"seen": "val_seen", "unseen": "val_unseen"}
CPU = ("MODEL.DEVICE", "cpu")
TOP_K = (1, 2, 4, 8, 16)
SIZES = (50, 150, 459, 847)
ABLATION_CLASSES = 48
"""Classes that a batch asks for in the ablations; fewer than the full recipe's, to save time."""
ABLATIONS = {
    "full recipe": (),
    "frozen image tower": ("MODEL.CLIP_FINETUNE", "frozen"),
    "guidance not detached": ("MODEL.SEM_SEG_HEAD.GUIDANCE", "attached"),
    "no skip fusion": ("MODEL.SEM_SEG_HEAD.GUIDANCE", "none"),
}


def evaluate(predictor: OpenVocabPredictor, split: str, count: int, ids=None, names=None) -> dict:
    """The model's figures on the first scenes of a split.

    Args:
        predictor: the model.
        split: "val_seen" or "val_unseen".
        count: number of scenes.
        ids: the classes of the world that the vocabulary starts with; None: all 92.
        names: the whole vocabulary; None: the names of `ids`.

    Returns:
        "mIoU" and "objects" (mIoU of the objects only), in per cent, over the classes that occur;
        pixels of a class outside `ids` are ignored. "survivors", the mean number of classes that
        reach the last level, and "ms", the median time of an image.
    """
    ids = range(len(shapes.CLASSES)) if ids is None else ids
    names = [shapes.CLASSES[i] for i in ids] if names is None else list(names)
    vocabulary = Vocabulary.from_names(names)
    index = np.full(256, len(names))
    index[list(ids)] = range(len(ids))
    confusion, survivors, seconds = ConfusionMatrix(len(names)), [], []
    hook = predictor.model.sem_seg_head.register_forward_hook(
        lambda module, inputs, output: survivors.append(len(output.survivors))
    )
    for number in range(count):
        image, labels = shapes.make_scene(number, split)
        if number == 0:
            predictor(image, vocabulary)  # embeds the names
            survivors.clear()
        start = time.perf_counter()
        prediction = predictor(image, vocabulary)
        seconds.append(time.perf_counter() - start)
        confusion.add(torch.from_numpy(prediction.labels), torch.from_numpy(index[labels]))
    hook.remove()
    metrics = segmentation_metrics(confusion.numpy(), names)
    own = set(shapes.CLASSES[shapes.SEEN_IDS.start :])
    objects = [metrics[f"IoU-{name}"] for name in names if name in own]
    return {
        "mIoU": round(metrics["mIoU"], 2),
        "objects": round(float(np.nanmean(objects)), 2),
        "survivors": round(statistics.mean(survivors), 1),
        "ms": round(1000 * statistics.median(seconds)),
    }


def vocabulary_of(size: int) -> tuple[list[int], tuple[str, ...]]:
    """Class ids of the world and the whole vocabulary, `size` names.

    Fewer names than the world has leave out some that are seen in training.
    """
    if size >= len(shapes.CLASSES):
        return list(range(len(shapes.CLASSES))), shapes.vocabulary_of_size(size)
    kept = [*shapes.BACKGROUND_IDS, *shapes.UNSEEN_IDS]
    kept += list(shapes.SEEN_IDS)[: size - len(kept)]
    return kept, tuple(shapes.CLASSES[i] for i in kept)


def measure_scores(args) -> list[dict]:
    """mIoU of seen and unseen combinations, all classes kept and with early rejection."""
    rows = []
    for k in (0, 8):
        predictor = OpenVocabPredictor(get_embedded_cfg(rejection(k)))
        row = {"k": k}
        for kind, split in SPLITS.items():
            row[kind] = evaluate(predictor, split, args.scenes)
        rows.append(row)
    return rows


def rejection(k: int) -> list:
    """The config pairs that keep the k best classes of a pixel, on the CPU; k = 0 keeps all."""
    return ["TEST.FAST_INFERENCE", k > 0, "TEST.TOPK", max(k, 1), *CPU]


def measure_recorded(args) -> list[dict]:
    """What the tests hold the shipped weights to."""
    predictor = OpenVocabPredictor(get_embedded_cfg(rejection(0)))
    return [
        {"kind": kind, **evaluate(predictor, split, RECORDED_SCENES)}
        for kind, split in SPLITS.items()
    ]


def measure_rejection(args) -> list[dict]:
    """Early rejection against the full decoder, by vocabulary size."""
    rows = []
    cases = [(size, k) for size in SIZES for k in (0, *TOP_K)]
    for size, k in tqdm(cases, unit="case"):
        predictor = OpenVocabPredictor(get_embedded_cfg(rejection(k)))
        ids, names = vocabulary_of(size)
        both = [
            evaluate(predictor, split, args.rejection_scenes, ids, names)
            for split in SPLITS.values()
        ]
        row = {key: round(statistics.mean(figures[key] for figures in both), 2) for key in both[0]}
        rows.append({"classes": size, "k": k, **row})
    return rows


def measure_ablations(args) -> list[dict]:
    """Train SED for a short while in each variant, from the same CLIP, and evaluate it."""
    rows = []
    for name, pairs in ABLATIONS.items():
        output = args.output / name.replace(" ", "_")
        opts = ["MODEL.CLIP.PRETRAINED", str(args.clip), "SOLVER.MAX_ITER", str(args.iterations)]
        opts += ["MODEL.SEM_SEG_HEAD.SAMPLED_CLASSES", str(ABLATION_CLASSES)]
        opts += [*pairs, "OUTPUT_DIR", str(output), "SEED", "1", "TEST.EVAL_PERIOD", "0"]
        command = [sys.executable, str(ROOT / "train_net.py"), "--resume"]
        command += ["--config-file", CONFIG_FILE, "--num-gpus", str(args.processes), *opts]
        command += ["DATASETS.TEST", "()", *CPU]
        # As in the Makefile: the data that it made, and a process of one thread on each core.
        data = {"DETECTRON2_DATASETS": str(QUICKSTART / "datasets"), "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, env={**os.environ, **data})
        cfg = get_sed_cfg(
            CONFIG_FILE, [*CPU, *pairs, "MODEL.WEIGHTS", str(output / "model_final.pth")]
        )
        predictor = OpenVocabPredictor(cfg)
        row = {"variant": name, "iterations": args.iterations}
        for kind, split in SPLITS.items():
            row[kind] = evaluate(predictor, split, args.rejection_scenes)
        rows.append(row)
    return rows


def draw_pictures() -> None:
    """Scenes of both splits: the image, the true labels, and what the model says."""
    predictor = OpenVocabPredictor(get_embedded_cfg(rejection(8)))
    image = read_image(ROOT / "demo" / "images" / "unseen_combinations.jpg")
    overlay = draw_overlay(image, predictor(image))
    pair = Image.new("RGB", (image.shape[1] + overlay.width, overlay.height), "white")
    pair.paste(Image.fromarray(image), (0, 0))
    pair.paste(overlay, (image.shape[1], 0))
    save_picture(pair, FOLDER / "demo.jpg")
    for kind, split in SPLITS.items():
        rows = []
        for number in range(3):
            image, labels = shapes.make_scene(number, split)
            prediction = predictor(image)
            truth = Prediction(labels.astype(np.int64), prediction.vocabulary)
            panels = [draw_overlay(image, p) for p in (truth, prediction)]
            rows.append([Image.fromarray(image), *panels])
        height = max(panel.height for row in rows for panel in row)
        width = max(panel.width for row in rows for panel in row)
        sheet = Image.new("RGB", (3 * width, len(rows) * height), "white")
        for y, row in enumerate(rows):
            for x, panel in enumerate(row):
                sheet.paste(panel, (x * width, y * height))
        save_picture(sheet, FOLDER / f"{kind}.jpg")


def score_table(rows: list[dict]) -> str:
    """mIoU by split, all 92 names asked for."""
    head = ["", "seen: mIoU", "objects only", "unseen: mIoU", "objects only", "ms an image"]
    body = [
        [
            f"early rejection, k = {row['k']}" if row["k"] else "all classes kept",
            *(f"{row[kind][key]:.1f}" for kind in SPLITS for key in ("mIoU", "objects")),
            row["seen"]["ms"],
        ]
        for row in rows
    ]
    return tabulate(body, head, tablefmt="github", disable_numparse=True)


def rejection_table(rows: list[dict]) -> str:
    """mIoU, survivors and time by vocabulary size and k."""
    full = {row["classes"]: row for row in rows if not row["k"]}
    head = ["classes", "k", "mIoU", "against all kept", "survivors", "ms an image", "times faster"]
    body = [
        [
            row["classes"],
            row["k"] or "all",
            f"{row['mIoU']:.2f}",
            f"{row['mIoU'] - full[row['classes']]['mIoU']:+.2f}",
            row["survivors"],
            round(row["ms"]),
            f"{full[row['classes']]['ms'] / row['ms']:.1f}",
        ]
        for row in rows
    ]
    return tabulate(body, head, tablefmt="github", disable_numparse=True)


def ablation_table(rows: list[dict]) -> str:
    """mIoU by variant."""
    head = ["variant", "iterations", "seen", "objects only", "unseen", "objects only"]
    body = [
        [row["variant"], row["iterations"]]
        + [f"{row[kind][key]:.1f}" for kind in SPLITS for key in ("mIoU", "objects")]
        for row in rows
    ]
    return tabulate(body, head, tablefmt="github", disable_numparse=True)


PARTS = {
    "recorded": (measure_recorded, None),
    "scores": (measure_scores, score_table),
    "rejection": (measure_rejection, rejection_table),
    "ablations": (measure_ablations, ablation_table),
}


@one_sentence()
def main(arguments=None) -> None:
    """Measure the parts that the command line names, and write them into the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", choices=[*PARTS, "pictures"], metavar="PART",
        help=f"of {', '.join(PARTS)} and pictures")  # fmt: skip
    for option, default, what in (
        ("scenes", 200, "scenes of each split for the scores"),
        ("rejection-scenes", 20, "scenes of each split for early rejection and the ablations"),
        ("iterations", 120, "of each ablation's training"),
        ("processes", 2, "that train an ablation"),
    ):
        parser.add_argument(f"--{option}", type=int, default=default, help=f"{what} (%(default)s)")
    parser.add_argument(
        "--clip", type=Path, default=QUICKSTART / "clip" / "clip.pt", help="CLIP of the ablations"
    )
    parser.add_argument("--output", type=Path, default=QUICKSTART / "ablations",
        help="where the ablations are trained")  # fmt: skip
    args = parser.parse_args(arguments)
    FOLDER.mkdir(parents=True, exist_ok=True)
    keep_freed_memory("cpu")
    figures = json.loads(FIGURES.read_text()) if FIGURES.is_file() else {}
    for part in args.parts:
        if part == "pictures":
            draw_pictures()
            continue
        measure, table = PARTS[part]
        where = describe_machine(torch.device("cpu"), torch.get_num_threads())
        figures[part] = {"machine": where, "rows": measure(args)}
        write_whole(FIGURES, lambda file: file.write(json.dumps(figures, indent=1).encode()))
        if table is None:
            continue
        text = f"{table(figures[part]['rows'])}\n\n({figures[part]['machine']})\n"
        update_page(PAGE, part, text)


if __name__ == "__main__":
    main()
