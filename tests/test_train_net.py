"""train_net.py as users run it: real processes, a small data set, a tiny model."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from detectron2.engine import default_argument_parser

import train_net
from sed_d2 import shapes
from sed_d2.config import read_keys

from .conftest import ROOT, TINY

ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",  # on the CPU wherever the tests run
    "OMP_NUM_THREADS": "1",  # several processes share the cores
    "PYTHONWARNINGS": "ignore",
}


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    """A data root with a few scenes of the shapes data set."""
    root = tmp_path_factory.mktemp("datasets")
    counts = {"train": 4, "val_seen": 2, "val_unseen": 2}
    shapes.write_dataset(root / "shapes", counts, processes=1)
    return root


def run(
    data_root, output, *arguments, opts=(), command=(sys.executable,), check=True, environment=()
):
    settings = [*TINY, "DATASETS.TRAIN", ("shapes_train_sem_seg",)]
    settings += ["DATASETS.TEST", ("shapes_val_seen_sem_seg",), "OUTPUT_DIR", output]
    settings += ["SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0, "TEST.EVAL_PERIOD", 0]
    config = ["--config-file", "Base-SED.yaml"]  # one of the own configs, by its name alone
    result = subprocess.run(
        [str(x) for x in (*command, ROOT / "train_net.py", *config, *arguments, *settings, *opts)],
        cwd=output,  # nothing is found relative to the working directory
        env={
            **os.environ,
            **ENVIRONMENT,
            **dict(environment),
            "DETECTRON2_DATASETS": str(data_root),
        },
        capture_output=True,
        text=True,
    )
    if check:
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return result


def metrics(output):
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


def weights(path):
    return torch.load(path, weights_only=True)


def test_train_resume_evaluate(data_root, tmp_path):
    opts = ["SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2]
    run(data_root, tmp_path, opts=opts)
    assert any(name.startswith("events.out") for name in os.listdir(tmp_path))
    written = {"loss_sem_seg_0", "loss_sem_seg_3", "total_loss", "lr"}
    assert any(written <= line.keys() for line in metrics(tmp_path))
    uninterrupted = weights(tmp_path / "model_final.pth")
    half = weights(tmp_path / "model_0000001.pth")
    assert (half["iteration"], uninterrupted["iteration"]) == (1, 3)

    # As if it had been stopped half way.
    (tmp_path / "model_final.pth").unlink()
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    result = run(data_root, tmp_path, "--resume", "--num-gpus", 0, opts=opts)
    assert "Starting training from iteration 2" in result.stdout
    resumed = weights(tmp_path / "model_final.pth")
    assert resumed["iteration"] == 3
    # Neither the optimizer nor the schedule has started anew.
    optimizers = [run["trainer"]["_trainer"]["optimizer"] for run in (resumed, uninterrupted)]
    assert optimizers[0]["state"][0]["step"] == 4
    for found, expected in zip(*(o["param_groups"] for o in optimizers), strict=True):
        assert found["lr"] == pytest.approx(expected["lr"])
    key = "sem_seg_head.decoder.cost_conv.weight"
    assert not torch.equal(half["model"][key], resumed["model"][key])
    frozen = "backbone.clip.token_embedding.weight"
    assert torch.equal(half["model"][frozen], resumed["model"][frozen])

    model_file = tmp_path / "model_final.pth"
    # The pooling as released command lines give it.
    opts = ["MODEL.WEIGHTS", model_file, "MODEL.SEM_SEG_HEAD.POOLING_SIZES", "[1,1]"]
    result = run(data_root, tmp_path, "--eval-only", opts=opts)
    assert "nothing reads" not in result.stdout
    found = json.loads(
        (tmp_path / "inference/shapes_val_seen_sem_seg/shapes_val_seen_sem_seg.json").read_text()
    )
    assert 0 <= found["mIoU"] <= 100 and "IoU-grass" in found
    assert "copypaste: mIoU,fwIoU,mACC,pACC" in result.stdout
    assert weights(model_file)["iteration"] == 3


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("launcher", ["--num-gpus", "torchrun"])
def test_two_processes_train_and_evaluate_as_one(data_root, tmp_path, launcher):
    address = f"127.0.0.1:{free_port()}"
    spawn = ["--num-gpus", 2, "--dist-url", "auto"]
    torchrun = [*(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2)]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", address]
    two = tmp_path / "two"
    two.mkdir()
    opts = ["SOLVER.MAX_ITER", 1, "TEST.EVAL_PERIOD", 1, "SEED", 1, "MODEL.BACKBONE.FREEZE_AT", 2]
    if launcher == "torchrun":
        result = run(data_root, two, opts=opts, command=torchrun)
    else:
        result = run(data_root, two, *spawn, opts=opts)
    assert "World size: 2" in result.stdout
    assert (
        result.stdout.count("keys that nothing reads, remove them: MODEL.BACKBONE.FREEZE_AT") == 1
    )

    # One process on the same weights: the counts of two processes add up to its own.
    one = tmp_path / "one"
    one.mkdir()
    run(data_root, one, "--eval-only", opts=["MODEL.WEIGHTS", two / "model_final.pth"])
    name = "inference/shapes_val_seen_sem_seg/shapes_val_seen_sem_seg.json"
    assert json.loads((two / name).read_text()) == json.loads((one / name).read_text())


@pytest.mark.parametrize(
    "opts, fragments",
    [
        (["MODEL.WEIGHTS", "nowhere.pth"], ["nowhere.pth", "does not exist"]),
        (["MODEL.NO_SUCH_KEY", 1], ["MODEL.NO_SUCH_KEY"]),
        (["DATASETS.TEST", ("no_such_set",)], ["no_such_set"]),
        (["MODEL.SEM_SEG_HEAD.TEST_CLASS_JSON", "few.txt"], ["few.txt", "2 classes", "has 92"]),
        (["MODEL.CLIP.NAME", "no_such_clip"], ["no_such_clip", "MODEL.CLIP.NAME"]),
        (["MODEL.AUTOCAST", "bfloat16"], ["MODEL.AUTOCAST", "use TEST.PRECISION"]),
        (["MODEL.SEM_SEG_HEAD.POOLING_SIZES", [2, 2]], ['pass TEST.POOLING_SIZES "[2, 2]"']),
    ],
)
def test_what_is_wrong_is_one_sentence(data_root, tmp_path, opts, fragments):
    (tmp_path / "few.txt").write_text("cat\ndog\n")
    result = run(data_root, tmp_path, "--eval-only", opts=opts, check=False)
    assert result.returncode == 1
    assert "Traceback" not in result.stdout + result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and all(fragment in last for fragment in fragments), last


def test_a_missing_data_folder_is_one_sentence(tmp_path):
    result = run(tmp_path / "nowhere", tmp_path, opts=["SOLVER.MAX_ITER", 1], check=False)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "nowhere/shapes/annotations_detectron2/train does not exist" in result.stderr
    assert "tools/make_shapes.py" in result.stderr


def test_one_seed_gives_one_model(data_root, tmp_path):
    """Two runs with the same seed end with the same weights, to the last bit."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        opts = ["SOLVER.MAX_ITER", 2, "SEED", 3, "DATASETS.TEST", ()]
        run(data_root, tmp_path / name, opts=[*opts, "MODEL.SEM_SEG_HEAD.SAMPLED_CLASSES", 20])
    first, second = (weights(tmp_path / name / "model_final.pth") for name in ("first", "second"))
    assert first["model"].keys() == second["model"].keys()
    for key, value in first["model"].items():
        assert torch.equal(value, second["model"][key]), key


def test_the_parser_has_the_options_of_detectron2():
    ours, theirs = train_net.argument_parser(), default_argument_parser()
    line = ["--config", "a.yaml", "--num-gpus", "2", "--eval-only", "TEST.TOPK", "3", "--resume"]
    assert vars(ours.parse_args(line)) | {"dist_url": ""} == vars(theirs.parse_args(line)) | {
        "dist_url": ""
    }
    assert vars(ours.parse_args([])) | {"dist_url": ""} == vars(theirs.parse_args([])) | {
        "dist_url": ""
    }


def test_help_needs_neither_torch_nor_detectron2(tmp_path):
    for name in ("torch", "detectron2"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('this must not be imported')")
    result = subprocess.run(
        [sys.executable, ROOT / "train_net.py", "--help"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "--eval-only" in result.stdout and "docs/config.md" in result.stdout


POOLING = "MODEL.SEM_SEG_HEAD.POOLING_SIZES"


@pytest.mark.parametrize(
    "line, used",
    [
        (["--eval-only", POOLING, "[1,1]"], [1, 1]),
        (["--eval-only", POOLING, "[2, 2]", "TEST.POOLING_SIZES", "[4, 4]"], [4, 4]),
        (["--eval-only"], [1, 1]),
        ([POOLING, "[4, 4]"], [1, 1]),  # training
    ],
)
def test_the_pooling_of_an_evaluation(line, used):
    args = train_net.argument_parser().parse_args(["--config-file", "Base-SED.yaml", *line])
    assert used == train_net.get_cfg(args).TEST.POOLING_SIZES


def test_an_evaluation_accepts_the_training_pooling_of_a_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("MODEL:\n  SEM_SEG_HEAD:\n    POOLING_SIZES: [4, 4]\nVERSION: 2\n")
    args = train_net.argument_parser().parse_args(["--eval-only", "--config-file", str(path)])
    assert train_net.get_cfg(args).TEST.POOLING_SIZES == [1, 1]


def test_training_and_evaluation_read_the_keys_that_the_config_lists(data_root, tmp_path):
    """The keys read by real runs are those that no warning names, and no others."""
    variant = ["SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR"]
    variant += ["TEST.AUG.ENABLED", True, "TEST.SLIDING.ENABLED", True]
    read = set()
    for i, opts in enumerate([[], variant]):
        recorded = tmp_path / f"keys_{i}.txt"
        run(
            data_root,
            tmp_path,
            command=(sys.executable, ROOT / "tests" / "record_keys.py"),
            environment={"RECORDED_KEYS": str(recorded)},
            opts=["SOLVER.MAX_ITER", 1, *opts],
        )
        read |= set(recorded.read_text().splitlines())
    # Detectron2 reads these from the YAML text, which a config cannot record.
    read |= {"CUDNN_BENCHMARK", "SEED", "VERSION"}
    # Detectron2 0.6 does not have these.
    later = {"DATALOADER.RANDOM_SUBSET_RATIO", "FLOAT32_PRECISION", "SOLVER.BASE_LR_END"}
    later |= {"SOLVER.NUM_DECAYS", "SOLVER.RESCALE_INTERVAL"}
    assert read - later == read_keys("SEDHead") - later
