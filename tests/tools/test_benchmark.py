"""The benchmark: its command, stages and checks, verdicts, counts of arithmetic and tables."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from sed_d2.modeling.layers.head_output import HeadOutput
from sed_d2.modeling.sed import decoder
from tests.conftest import TINY
from tools import benchmark
from tools.benchmarking import floor, measure, report
from tools.benchmarking.measure import Result
from tools.benchmarking.stages import Case, Stages, chosen_survivors, compare

ROOT = Path(__file__).resolve().parents[2]
MACHINE = {"float32": 200e9, "bfloat16": 400e9, "bytes": 1e10}


def options(*arguments):
    """The options of a run that takes few repeats of few classes."""
    return benchmark.parser(survivors=10, repeats=2, threads=1).parse_args(arguments)


@pytest.fixture
def stages(tiny_cfg):
    return Stages(tiny_cfg())


def test_the_command_measures_and_writes(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- begin here -->\nold\n<!-- end here -->\nafter\n")
    command = [sys.executable, ROOT / "tools" / "benchmark.py", "--quick", "--device", "cpu"]
    command += ["--config-file", ROOT / "configs" / "Base-SED.yaml", "--output", tmp_path / "out"]
    command += ["--vocabulary-sizes", "30", "--repeats", "2", "--update-page", page, "here", *TINY]
    done = subprocess.run(map(str, command), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "head, early, T=30: fast " in done.stdout and "plain / fast" in done.stdout

    results = json.loads((tmp_path / "out" / "results.json").read_text())
    cases = [Case(*result["case"]) for result in results["stages"]]
    assert {case.stage for case in cases} == {"encoder", "head", "labels", "whole image"}
    for case, result in zip(cases, results["stages"], strict=True):
        assert [len(seconds) for seconds in result["seconds"].values()] == [2, 2]
        assert result["work"][1] > 0 and result["profile"]
        if case.stage == "head":
            assert result["checks"]["max difference"] < 1e-4
            survivors = 20 if case.mode == "early" else case.classes
            assert result["checks"]["survivors"] == survivors
    assert len(results["curve"]) == 6 and not results["levels"]
    assert "Time of the head, full: " in results["notes"][-2]
    assert (tmp_path / "out" / "plot.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "out" / "report.md").read_text()
    assert page.read_text() == f"before\n<!-- begin here -->\n\n{text}\n<!-- end here -->\nafter\n"


def test_a_wrong_model_is_one_sentence(tiny_cfg):
    args = options("--config-file", str(ROOT / "configs" / "Base-SED.yaml"))
    args.opts = [*TINY, "MODEL.SEM_SEG_HEAD.NAME", "NoSuchHead"]
    with pytest.raises(ValueError, match="No object named 'NoSuchHead' found in .*; check the con"):
        measure.run_cases(args, [Case("encoder")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stages", "head,oven"], "'oven' is unknown: use encoder, text"),
        (["--embedded", "--config-file", "Base-SED.yaml"], "not allowed with argument --embedded"),
        (["--batches", "1,0"], "'0' is unknown: use whole numbers above 0"),
        (["--repeats", "0"], "'0' is unknown: use whole numbers above 0"),
        (["--vs", "torch"], "invalid choice: 'torch'"),
    ],
)
def test_wrong_options_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        benchmark.parser().parse_args(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "toaster"], "torch cannot use the device 'toaster' here (Expected one of"),
        (["TEST.PRECISION", "bfloat16"], "TEST.PRECISION would hold for the plain form too"),
        (["--update-page", "nowhere.md", "cpu"], "The page nowhere.md does not exist"),
    ],
)
def test_what_cannot_be_measured_is_said_at_once(arguments, message, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, "measure_machine", lambda *_: pytest.fail("it was measured"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"^error: {re.escape(message)}"):
        benchmark.main(["--config-file", "Base-SED.yaml", *arguments])


def test_cases_are_the_product_of_the_options():
    arguments = ["--vocabulary-sizes", "20,900", "--dtypes", "float32,float16", "--batches", "1,2"]
    args = benchmark.parser().parse_args([*arguments, "MODEL.DEVICE", "cpu"])
    assert args.opts == ["MODEL.DEVICE", "cpu"]
    cases = [str(case) for case in benchmark.stage_cases(args)]
    count = {stage: sum(case.split(",")[0] == stage for case in cases) for stage in args.stages}
    assert count == {
        "encoder": 4,
        "text": 1,
        "second start": 1,
        "head": 8,
        "labels": 2,
        "whole image": 16,
    }
    assert "whole image, early, T=900, float16, batch 2" in cases
    assert "second start, T=847" in cases and "labels, T=20" in cases


def test_an_explicit_option_wins_over_quick():
    base = ["--config-file", str(ROOT / "configs" / "Base-SED.yaml"), "--quick"]
    args, cfg = benchmark.read_options([*base, "--repeats", "7", "MODEL.CLIP.RESOLUTION", "384"])
    assert (args.repeats, args.classes, args.parts) == (7, [60, 150], ["stages", "curve"])
    assert cfg.MODEL.CLIP.RESOLUTION == 256 and args.opts[-1] == "256"


@pytest.mark.parametrize("stage", ["encoder", "text", "head", "labels", "whole image"])
def test_every_stage_agrees_with_its_plain_form(stages, stage):
    case = Case(stage, 2 if stage == "text" else 20, "early", batch=2 if "image" in stage else 1)
    result = measure.measure(stages, case, options())
    assert [len(seconds) for seconds in result.seconds.values()] == [2, 2]
    assert result.checks.get("labels equal", 1) > 0.999
    assert result.checks.get("max difference", 0) < 1e-5
    assert result.checks.get("relative difference", 0) < 1e-4
    assert len(result.checks) == (4 if stage == "head" else 1)
    assert all(peak is None or peak > 0 for peak in result.peak_bytes.values())
    assert (result.work[0] > 0) == (stage != "labels") and result.work[1] > 0
    assert set(result.profile) & {"mm", "addmm", "bmm", "mkldnn_convolution", "max"}


def test_half_precision_is_measured_against_float32(stages):
    for stage in ("encoder", "head"):
        checks = measure.measure(stages, Case(stage, 20, dtype="bfloat16"), options()).checks
        assert 1e-4 < checks.get("relative difference", checks.get("max difference")) < 0.2


@pytest.mark.parametrize("stage", ["second start", "training step"])
def test_some_stages_have_one_form(stages, stage):
    result = measure.measure(stages, Case(stage, 12), options())
    assert list(result.seconds) == ["fast"] and not result.checks
    assert not stages.model.training and all(p.grad is None for p in stages.model.parameters())


def test_a_second_start_fails_if_the_text_tower_runs(stages, monkeypatch):
    monkeypatch.setattr("sed_d2.modeling.clip.text_cache.TextCache.read", lambda *_: False)
    with pytest.raises(RuntimeError, match="the text tower ran, although the cache has all cl"):
        measure.measure(stages, Case("second start", 2), options())


def test_without_a_comparison_the_plain_form_does_not_run(stages):
    result = measure.measure(stages, Case("encoder", plain=False), options())
    assert list(result.seconds) == list(result.peak_bytes) == ["fast"] and not result.checks


@pytest.mark.parametrize("mode", ["full", "early"])
def test_a_planted_difference_is_seen(stages, mode, monkeypatch):
    case = Case("head", 20, mode)
    fair = measure.measure(stages, case, options()).checks
    assert fair["survivors"] == (10 if mode == "early" else 20) and not fair["other survivors"]
    plain = type(stages.model.sem_seg_head).forward

    def changed(self, features, text):
        return plain(self, {**features, "res3": 1 + 2 * features["res3"]}, text)

    monkeypatch.setattr(type(stages.model.sem_seg_head), "forward", changed)
    other = measure.measure(stages, case, options()).checks
    assert other["max difference"] > 1e-3 > 10 * fair["max difference"]


def test_differences_by_hand():
    logits = torch.tensor([[[[2.0, -3.0]], [[1.0, -1.0]]]])  # two classes at two pixels
    plain = HeadOutput(logits, torch.tensor([0, 3]))
    assert compare(plain, plain) == {
        "labels equal": 1,
        "max difference": 0,
        "survivors": 2,
        "other survivors": 0,
    }
    fast = HeadOutput(logits[:, :1], torch.tensor([0]))
    assert compare(plain, fast) == pytest.approx(
        # The second pixel has class 3 in the plain form alone; class 3 scores sigmoid(1) at most.
        {"labels equal": 0.5, "max difference": 0.731059, "survivors": 1, "other survivors": 1}
    )
    x = torch.tensor([1.0, 3.0])  # its standard deviation is the root of 2
    assert compare({"a": x, "b": x}, {"a": x, "b": x + 2}) == pytest.approx(
        {"relative difference": 2**0.5}
    )


def test_chosen_survivors_are_evenly_spaced():
    logits = torch.eye(4)[:, None]  # each class is the best somewhere
    with chosen_survivors(2):
        assert decoder.union_of_top_k(logits, 1).tolist() == [0, 2]
    with chosen_survivors(0):
        assert decoder.union_of_top_k(logits, 1).tolist() == [0, 1, 2, 3]


def test_trained_weights_see_real_names_and_choose_their_own(tmp_path, tiny_cfg, tiny_model):
    weights = tmp_path / "weights.pth"
    torch.save({"model": tiny_model().state_dict()}, weights)
    cfg = tiny_cfg("MODEL.WEIGHTS", str(weights))
    result = measure.measure(Stages(cfg), Case("head", 30, "early"), options())
    # 2×2 pixels keep 8 classes each; a chosen number would be 10.
    assert 8 <= result.checks["survivors"] <= 30 and result.checks["survivors"] != 10
    assert result.checks["max difference"] < 1e-5
    assert Stages(cfg, random_inputs=True).random_inputs


def test_a_head_without_rejection_is_told(stages):
    stages.model.sem_seg_head = torch.nn.Identity()
    with pytest.raises(ValueError, match="Identity has no early rejection: use --modes full"):
        stages.build(Case("labels", 5, "early"))


def test_a_plain_form_that_fails_leaves_the_fast_one():
    def fail():
        raise RuntimeError("out of\nmemory")

    forms = {"fast": lambda: torch.ones(2), "plain": fail}
    stages = SimpleNamespace(
        device=torch.device("cpu"), random_inputs=True, build=lambda case: ((), dict(forms))
    )
    result = measure.measure(stages, Case("encoder"), options())
    assert list(result.seconds) == ["fast"] and result.error == "plain: out of memory"
    forms["fast"] = fail
    with pytest.raises(RuntimeError, match="out of"):
        measure.measure(stages, Case("encoder"), options())


def test_the_peak_is_above_the_memory_in_use():
    device = torch.device("cpu")
    measure.reset_peak(device)
    start = measure.memory(device, peak=False)
    torch.ones(16 << 20)  # 64 MiB, freed at once
    peak = measure.memory(device, peak=True)
    assert peak is None or 6e7 <= peak - start < 1e8  # the kernel counts in batches
    measure.reset_peak(device)
    assert peak is None or measure.memory(device, peak=True) - start < 6e7


def test_forms_take_turns():
    order = []
    forms = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = floor.time_by_turns(forms, torch.device("cpu"), warmup=1, repeats=3)
    assert "".join(order) == "abbaabba" and [*map(len, seconds.values())] == [3, 3]
    late = floor.time_by_turns(forms, torch.device("cpu"), warmup=0, repeats=9, limit=0)
    assert [*map(len, late.values())] == [2, 2]


def test_work_by_hand():
    x, weight = torch.ones(1, 3, 8, 8), torch.ones(5, 3, 3, 3)
    work = floor.count_work(lambda: F.conv2d(x, weight, padding=1), (x, {"again": x}))
    assert work == (64 * 5 * 3 * 9, 4 * (64 * 5 + 2 * 64 * 3))
    a, b = torch.ones(2, 3, 4), torch.ones(2, 4, 5)
    assert floor.count_work(lambda: torch.zeros(2, 3, 5).baddbmm_(a, b))[0] == 2 * 3 * 4 * 5


def result(case=Case("head", 150), fast=1.0, plain=4.0, peak=10**9, **checks):  # noqa: B008
    seconds = {"fast": [fast, fast, 9.0], "plain": [plain, 0.0, plain]}
    checks = {"labels equal": 1.0, "max difference": 1e-6, **checks}
    work, profile = (5 * 10**10, 10), {"mm": 0.75, "add": 0.25}
    return Result(case, seconds, {"fast": peak, "plain": 2 * 10**9}, checks, work, profile)


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        (result(), "met"),
        (result(plain=3.9), "not met: 3.9 times"),
        (result(peak=2_100_000_000), "not met: 2.1 GB"),
        (result(peak=None), "met (not measured: GB)"),
        (result(fast=3, plain=12), "not met: 3 s"),
        (result(**{"labels equal": 0.9989}), "not met: 0.9989 labels equal"),
        (result(**{"max difference": 2e-4}), "not met: 0.0002 max difference"),
        (result(**{"max difference": float("nan")}), "not met: nan max difference"),
        (result(**{"relative difference": 2e-4}), "not met: 0.0002 relative difference"),
        (result(**{"other survivors": 1}), "not met: 1 other survivors"),
        (result(plain=1, peak=2 * 10**9), "not met: 1 times, 2 GB"),
        (Result(Case("head", 150), error="killed"), "not met: killed"),
    ],
)
def test_verdicts(measured, verdict):
    limits = {"times": 4, "GB": 1.5, "s": 2}
    assert report.judge(limits, measured, trained=False) == verdict


def test_verdicts_without_a_plain_form_and_in_half_precision():
    alone = result()
    del alone.seconds["plain"]
    assert report.judge({"times": 4}, alone, False) == "met (not measured: times)"
    half = result(Case("head", 150, dtype="bfloat16"), **{"labels equal": 0.98})
    assert report.judge({"times": 4}, half, trained=False) == "met"
    assert report.judge({"times": 4}, half, trained=True) == "not met: 0.98 labels equal"


def test_the_levels_of_a_gpu_are_in_half_precision():
    cpu, gpu = report.levels(on_cpu=True), report.levels(on_cpu=False)
    assert len(cpu) == len(gpu) == 10
    assert [case.dtype for case in gpu][:7] == ["float16"] * 7
    assert cpu[Case("whole image", 150, "early")] == {"times": 4}
    assert gpu[Case("whole image", 150, "early", "float16")] == {"times": 12, "s": 0.012}


def test_tables():
    results = [result(), result(plain=3.0), Result(Case("head", 150), error="killed")]
    rows = report.level_rows(results, [{"times": 4, "GB": 1.5}] * 3, MACHINE, trained=False)
    assert rows[0] == {
        "stage": "head, full, T=150",
        "plain s": "4",
        "fast s": "1",
        "plain / fast": "4",
        "peak fast GB": "1",
        "floor s": "0.25",
        "fast / floor": "4",
        "error": "",
        "required": "≥ 4 times, ≤ 1.5 GB",
        "verdict": "met",
        "largest operators": "",
    }
    assert rows[1]["largest operators"] == "75% mm, 25% add"
    assert rows[2]["verdict"] == "not met: killed" and rows[2]["fast s"] == ""
    (row,) = report.stage_rows([result()], MACHINE)
    assert row["quartiles"] == "1-5" and row["check"] == "1 labels equal, 1e-06 max difference"
    bound_by_bytes = result()
    bound_by_bytes.work = (0, 10**10)
    assert report.stage_rows([bound_by_bytes], MACHINE)[0]["floor s"] == "1"
    text = report.render(["A note."], {"Title": [{"a": "1", "empty": ""}]}, "github")
    assert text == "A note.\n\n### Title\n\n| a   |\n|-----|\n| 1   |"


def test_statistics_by_hand():
    assert Result(Case("encoder"), {"fast": [5, 1, 2, 4, 3]}).quartiles("fast") == [2, 3, 4]
    # The line through (0, 0), (1, 3), (2, 3) is 0.5 + 1.5 x; residuals -0.5, 1, -0.5.
    curve = [Result(Case("head", x), {"fast": [y]}) for x, y in ((0, 0), (1, 3), (2, 3))]
    assert list(report.fit_lines(curve)) == ["full: 0.5 + 1.5 T s, R² = 0.7500"]
