"""The benchmark: its command, its statistics and verdicts, its checks, its counts of arithmetic."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sed_d2 import shapes
from sed_d2.modeling.sed.decoder import GradualFusionDecoder
from tests.conftest import TINY
from tools import benchmark
from tools.benchmarking import case as case_module
from tools.benchmarking import floor, plain
from tools.benchmarking.case import Settings
from tools.benchmarking.levels import Level, Verdict, fit_line, judge, levels, spread
from tools.benchmarking.operators import kind
from tools.benchmarking.report import (
    LEVEL_HEADERS,
    PROFILE_HEADERS,
    level_rows,
    profile_rows,
    render,
    stage_rows,
)
from tools.benchmarking.stages import Bench, Case

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = Settings("Base-SED.yaml", (), "cpu", 1, survivors=10, repeats=2)


@pytest.fixture
def bench(tiny_cfg):
    return Bench(tiny_cfg(), needs_plain=True)


def test_the_command_measures_and_writes(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- begin here -->\nold\n<!-- end here -->\nafter\n")
    command = [sys.executable, ROOT / "tools" / "benchmark.py", "--quick", "--device", "cpu"]
    command += ["--config-file", ROOT / "configs" / "Base-SED.yaml", "--output", tmp_path / "out"]
    command += ["--update-page", page, "here", *TINY]
    done = subprocess.run(map(str, command), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "plain / ours" in done.stdout and "Quick, so left out: the levels" in done.stdout

    results = json.loads((tmp_path / "out" / "results.json").read_text())
    stages = {result["case"]["stage"] for result in results["stages"]}
    assert stages == set(benchmark.STAGES) - {"text", "second start"}
    for result in results["stages"]:
        assert len(result["ours"]["seconds"]) >= 2
        assert ("plain" in result) == (result["case"]["stage"] != "read")
        if result["case"]["stage"] == "decoder":
            assert result["checks"]["max_difference"] < 1e-4
            alive = [20] * 3 if result["case"]["mode"] == "early" else []
            assert result["survivors"] == alive
    assert len(results["curve"]) == 8 and not results["levels"]
    assert (tmp_path / "out" / "plot.png").read_bytes().startswith(b"\x89PNG")
    report = (tmp_path / "out" / "report.md").read_text()
    assert page.read_text() == (
        f"before\n<!-- begin here -->\n\n{report}\n<!-- end here -->\nafter\n"
    )


def test_a_wrong_config_is_one_sentence():
    opts = (*map(str, TINY), "MODEL.CLIP.NAME", "no_such_model")
    settings = Settings(str(ROOT / "configs" / "Base-SED.yaml"), opts, "cpu", 1, 5)
    with pytest.raises(ValueError, match="^MODEL.CLIP.NAME 'no_such_model' is no open_clip model"):
        benchmark.Job(settings, 64).measure([Case("read")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stages", "decoder,oven"], "'oven' is none of read, encoder"),
        (["--embedded", "--config-file", "Base-SED.yaml"], "not allowed with argument --embedded"),
        (["--batches", "1,0"], "'1,0' is no list of whole numbers above 0"),
        (["--repeats", "0"], "'0' is no whole number from 1 on"),
        (["--survivors", "1.5"], "'1.5' is no whole number from 0 on"),
        (["--seconds", "nan"], "'nan' is no number from 0 on"),
    ],
)
def test_wrong_options_are_named(options, message, capsys):
    with pytest.raises(SystemExit):
        benchmark.parser().parse_args(options)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "toaster"], "torch cannot use the device 'toaster' here (Expected one of"),
        (["--quick", "--parts", "levels"], "The levels take more than --quick has time for"),
        (["MODEL.AUTOCAST", "bfloat16"], "MODEL.AUTOCAST would hold for the plain form too"),
        (["--update-page", "nowhere.md", "cpu"], "The page nowhere.md does not exist"),
    ],
)
def test_what_cannot_be_measured_is_said_at_once(options, message, monkeypatch, tmp_path):
    def measure(*_):
        raise AssertionError("something was measured")

    monkeypatch.setattr(benchmark.Job, "machine", measure)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"^error: {re.escape(message)}"):
        benchmark.main(["--config-file", "Base-SED.yaml", *options])


def test_cases_are_the_product_of_the_options():
    arguments = ["--vocabulary-sizes", "20,900", "--dtypes", "float32,float16", "--batches", "1,2"]
    args = benchmark.parser().parse_args([*arguments, "MODEL.DEVICE", "cpu"])
    assert args.opts == ["MODEL.DEVICE", "cpu"]
    cases = benchmark.stage_cases(args)
    count = {stage: sum(case.stage == stage for case in cases) for stage in benchmark.STAGES}
    assert count == {
        **{"read": 1, "encoder": 4, "text": 1, "second start": 1, "cost map": 4},
        **{"decoder": 8, "upsampling": 2, "labels": 2, "whole image": 16},
    }
    assert Case("whole image", 900, "early", "float16", 2) in cases
    assert Case("second start", 847) in cases


def test_plain_is_left_out_where_it_would_not_fit(monkeypatch):
    monkeypatch.setattr(benchmark, "free_bytes", lambda device: 10e9)
    job = benchmark.Job(SETTINGS, 768)
    assert job._affordable(Case("decoder", 150)).plain
    assert job._affordable(Case("decoder", 847, "early")).plain
    assert not job._affordable(Case("decoder", 847)).plain
    assert "takes about 18 GB, more than 70 % of the 10 GB that are free" in job.left_out[0]
    keeps = benchmark.Job(replace(SETTINGS, keeps_memory=True), 768)
    assert not keeps._affordable(Case("decoder", 459)).plain
    assert "T=459 is left out with freed memory kept: it takes about 19 GB" in keeps.left_out[0]


def test_spread_and_line_by_hand():
    assert spread([5, 1, 2, 4, 3]) == (3, 2, 4)
    assert spread([1, 2]) == (1.5, 1.25, 1.75)
    assert spread([7]) == (7, 7, 7)
    line = fit_line([0, 1, 2, 3], [1, 3, 5, 7])
    assert line == pytest.approx((1, 2, 1))
    # The line through (0, 0), (1, 3), (2, 3) is 0.5 + 1.5 x; residuals -0.5, 1, -0.5.
    assert fit_line([0, 1, 2], [0, 3, 3]) == pytest.approx((0.5, 1.5, 1 - 1.5 / 6))


def result(ours=1.0, plain=4.0, peak=10**9, **checks):
    """A case's result with the given medians and checks."""
    timed = {"seconds": [ours, ours, 9.0], "parts": [], "peak_bytes": peak}
    both = {"ours": timed, "plain": {**timed, "seconds": [plain, 0.0, plain]}}
    return {**both, "checks": {"argmax_equal": 1.0, "max_difference": 1e-6, **checks}}


FAST, SLOW = 200e9, 50e9


@pytest.mark.parametrize(
    ("outcome", "verdict"),
    [
        (result(), "met"),
        (result(plain=3.9), "not met: 3.90 < 4 times"),
        (result(peak=2_100_000_000), "not met: 2.10 > 1.5 GB"),
        (result(peak=None), "met (memory not measured here)"),
        (result(argmax_equal=0.9989), "not met: argmax equal on 99.89 %"),
        (result(max_difference=2e-4), "not met: max difference 2.0e-04"),
        (result(max_difference=float("nan")), "not met: max difference nan"),
        (result(relative_difference=2e-4), "not met: relative difference 2.0e-04"),
        (result(plain_survivors=[61, 60, 60]), "not met: other survivors than plain's"),
        (result(plain=1, peak=2 * 10**9), "not met: 1.00 < 4 times; 2.00 > 1.5 GB"),
        ({"error": "killed"}, "not met: killed"),
    ],
)
def test_verdicts(outcome, verdict):
    level = Level("decoder", Case("decoder", 150), ratio=4, gigabytes=1.5)
    assert str(judge(level, outcome, FAST, trained=False)) == verdict


def test_verdicts_of_seconds_and_of_half_precision():
    level = Level("decoder", Case("decoder", 847, "early"), seconds=2.3)
    assert judge(level, result(ours=2.3), FAST, False) == Verdict(True)
    assert str(judge(level, result(ours=2.4), FAST, False)) == "not met: 2.4e+03 > 2300 ms"
    slow = judge(level, result(ours=2.4), SLOW, False)
    assert slow.met and "but the machine is slower" in str(slow)
    half = Level("whole image", Case("whole image", 150, "early", "bfloat16"), ratio=4)
    loose = result(argmax_equal=0.98, max_difference=0.01)
    assert str(judge(half, loose, FAST, False)) == "met (labels not judged, random weights)"
    assert str(judge(half, loose, FAST, True)) == "not met: argmax equal on 98.00 %"
    assert judge(half, result(argmax_equal=0.995, max_difference=0.01), FAST, True).met
    start = Level("second start", Case("second start", 847), seconds=1)
    assert str(judge(start, result(text_passes=3), FAST, False)) == "not met: 3 text passes"


def test_the_table_of_levels():
    level = Level("decoder", Case("decoder", 150), ratio=4, gigabytes=1.5)
    only = Level("decoder, alone", Case("decoder", 847, plain=False))
    alone = {"ours": result()["ours"], "checks": {}}
    machine = floor.Machine({"float32": FAST}, 1e10)
    outcomes = [result(), alone, {"error": "killed"}]
    kept = [result(plain=3.0), None, {"error": "killed"}]
    rows = level_rows([level, only, level], outcomes, kept, machine, trained=False)
    asked = ">= 4 times, <= 1.5 GB"
    assert rows == [
        ["decoder", "4.000", "1.000", "4.00", "1.00", asked, "met", "3.000", "1.000", "3.00"],
        ["decoder, alone", "", "1.000", "", "1.00", "runs", "met", "", "", ""],
        ["decoder", "", "", "", "", asked, "not met: killed", "", "", ""],
    ]
    assert {len(row) for row in rows} == {len(LEVEL_HEADERS)}


def test_a_level_that_was_not_met_tells_why():
    level = Level("decoder", Case("decoder", 150), ratio=4)
    outcome = {
        **result(plain=3.0),
        # A quarter of a second at 2e11 multiply-adds a second: plain / 12 at most.
        "work": [[3 * 10**10, 0], [2 * 10**10, 10]],
        "profile": {"products": 0.6, "norms": 0.15, "rest": 0.05},
    }
    machine = floor.Machine({"float32": FAST}, 1e10)
    outcomes = [result(), outcome, {"error": "killed"}]
    rows = profile_rows([level] * 3, outcomes, machine, trained=False)
    assert rows == [["decoder", "1.000", "0.250", "12.00", "75 % products, 19 % norms, 6 % rest"]]
    assert len(rows[0]) == len(PROFILE_HEADERS)


def test_operators_have_kinds(bench):
    kinds = {
        "aten::addmm": "products",
        "aten::baddbmm_": "products",
        "aten::_convolution": "convolutions",
        "aten::mkldnn_convolution": "convolutions",
        "aten::exp2_": "activations",
        "aten::expand": "rest",
        "aten::addcdiv_": "sums",
        "aten::maximum": "sums",
        "aten::max": "upsampling, labels",
        "aten::masked_fill_": "copies",
        "aten::view": "rest",
    }
    assert {name: kind(name) for name in kinds} == kinds
    settings = replace(SETTINGS, profiles=True)
    outcome = case_module.measure(bench, Case("decoder", 20), settings)
    seconds = outcome["profile"]
    assert {"convolutions", "norms", "activations", "sums", "copies"} <= set(seconds)
    assert list(seconds.values()) == sorted(seconds.values(), reverse=True)
    assert 0 < sum(seconds.values()) < 100


def test_the_levels_are_those_asked_for():
    table = levels("cpu", 8, 60, 4)
    assert [level.asked for level in table] == [
        ">= 4 times, <= 1.5 GB",
        ">= 4 times, <= 2 GB",
        "<= 3 GB",
        ">= 8 times, <= 1 GB",
        ">= 8 times, <= 2300 ms, <= 1.5 GB",
        ">= 1.5 times",
        ">= 4 times",
        ">= 12 times",
        ">= 6 times",
        "<= 1000 ms",
    ]
    on_gpu = levels("cuda", 8, 60, 4)
    assert all(level.case.dtype == "float16" for level in on_gpu[:7])
    assert on_gpu[6].asked == ">= 12 times, <= 12 ms"


@pytest.mark.parametrize("mode", ["full", "early"])
def test_a_planted_difference_is_seen(bench, mode):
    case = Case("decoder", 20, mode)
    fair = case_module.measure(bench, case, SETTINGS)
    assert fair["survivors"] == ([10, 10, 10] if mode == "early" else [])
    assert fair["checks"]["argmax_equal"] == 1
    assert fair["checks"]["max_difference"] < 1e-5
    assert [len(parts) for parts in fair["ours"]["parts"]] == [4, 4]
    assert sum(fair["ours"]["parts"][0]) == pytest.approx(fair["ours"]["seconds"][0])
    torch.nn.init.normal_(bench.plain_decoder.levels[1].fam.spatial.dwconv.weight)
    other = case_module.measure(bench, case, SETTINGS)["checks"]
    assert other["max_difference"] > 1e-3 and other["argmax_equal"] < 1


def test_without_a_chosen_number_the_model_chooses(bench):
    own = Settings("Base-SED.yaml", (), "cpu", 1, survivors=0, repeats=2)
    outcome = case_module.measure(bench, Case("decoder", 20, "early"), own)
    assert len(outcome["survivors"]) == 3 and "plain_survivors" not in outcome["checks"]


def test_trained_weights_see_real_names_and_choose_their_own(tmp_path, tiny_cfg, tiny_model):
    weights = tmp_path / "weights.pth"
    torch.save({"model": tiny_model().state_dict()}, weights)
    bench = Bench(tiny_cfg("MODEL.WEIGHTS", str(weights)), needs_plain=True)
    assert bench.vocabulary(20).names == shapes.CLASSES[:20]
    assert bench.vocabulary(100).names == shapes.vocabulary_of_size(100)
    outcome = case_module.measure(bench, Case("whole image", 12, "early"), SETTINGS)
    # 2×2 pixels keep 8 classes each; a chosen number would be 10 at every level.
    assert 8 <= outcome["survivors"][0] <= 12 and outcome["survivors"] != [10] * 3
    assert outcome["checks"]["max_difference"] < 1e-5
    assert Bench(tiny_cfg("MODEL.WEIGHTS", str(weights)), False, structured=True).structured


def test_memory_is_the_peak_above_the_start():
    memory = case_module.Memory(torch.device("cpu"))
    torch.ones(16 << 20)  # 64 MiB, freed at once
    peak = memory.peak()
    assert peak is None or 6e7 <= peak < 1e8  # the kernel counts in batches
    memory.reset()
    assert peak is None or memory.peak() < 6e7


@pytest.mark.parametrize("stage", ["encoder", "text", "cost map", "whole image", "labels"])
def test_every_stage_answers_as_its_plain_form(bench, stage):
    case = Case(stage, 1 if stage == "text" else 20, "early", batch=2 if "image" in stage else 1)
    outcome = case_module.measure(bench, case, SETTINGS)
    checks = outcome["checks"]
    assert checks.get("argmax_equal", 1) > 0.999
    assert checks.get("max_difference", 0) < 1e-5
    assert checks.get("relative_difference", 0) < 1e-4
    assert outcome["plain"]["peak_bytes"] is None or outcome["plain"]["peak_bytes"] > 0
    machine = floor.Machine({"float32": 1e11}, 1e10)
    table = render({"notes": ["A note."], "tables": [("T", "abcdefghijklmnop", [])]}, "github")
    assert table.startswith("A note.\n\n### T")
    assert stage_rows([outcome], machine)[0][0] == stage


def test_a_second_start_passes_no_text(bench):
    outcome = case_module.measure(bench, Case("second start", 12), SETTINGS)
    assert outcome["checks"] == {"text_passes": 0} and "plain" not in outcome


@torch.no_grad()
@pytest.mark.parametrize("top_k", [0, 2])
def test_multiply_adds_are_those_that_torch_counts(top_k):
    decoder = GradualFusionDecoder(80, 32, [32, 16, 16], [16, 8, 8], [8, 6, 4], [5, 7, 9], 4)
    features = [torch.randn(1, c, s, s) for c, s in ((8, 4), (6, 8), (4, 16))]
    survivors = case_module.Survivors(4)
    with survivors.installed(), FlopCounterMode(display=False) as counter:
        plain.plain_decode(decoder, torch.randn(1, 10, 80, 2, 2), features, top_k=top_k)
    alive = [10, *(survivors.counts or [10] * 3)]
    works = floor.decoder_work(decoder, alive, (2, 2), rejects=bool(top_k), plain=True)
    assert 2 * sum(work.multiply_adds for work in works) == counter.get_total_flops()


def test_what_the_exact_form_saves_by_hand():
    decoder = GradualFusionDecoder(80, 32, [16, 16, 16], [8, 4, 4], [8, 6, 4], [5, 5, 5], 4)
    first, ours = (
        floor.decoder_work(decoder, [10] * 4, (2, 2), rejects=False, plain=form)[1]
        for form in (True, False)
    )
    # Width 32 to 16, guidance 8, at 2 * 2 positions and four times as many after ``up``.
    up, conv1 = 4 * 32 * 24, 4 * 9 * (24 + 8 + 8) * 16
    composed, cost, link = 4 * 4 * 32 * 16, 4 * 9 * 8 * 16, 4 * 80 * 8
    image = 4 * 4 * 9 * 8 * 16  # once
    saved = 10 * 4 * (up + conv1 - composed - cost - link) - image
    assert first.multiply_adds - ours.multiply_adds == saved


def test_what_choosing_before_the_convolution_saves_by_hand():
    decoder = GradualFusionDecoder(80, 32, [16, 16, 16], [8, 4, 4], [8, 6, 4], [5, 5, 5], 4)
    before = [
        floor.decoder_work(decoder, [10, 4, 4, 4], (2, 2), rejects=True, plain=form)[0]
        for form in (True, False)
    ]
    # At 2 * 2 positions: 10 classes with 32 outputs, the head and the guidance of all levels, or
    # 10 with nine outputs and 4 with 32.
    guidance = 10 * 4 * (4 * 80 * 8 + 4 * 4 * 8 * 4 + 16 * 4 * 4 * 4)
    assert before[0].multiply_adds == 10 * 4 * (49 * 80 * 32 + 9 * 32) + guidance
    assert before[1].multiply_adds == 10 * 4 * 49 * 80 * 9 + 4 * 4 * 49 * 80 * 32
    assert before[1].bytes == 4 * (10 * 4 * 80 + 4 * 4 * (80 + 32))


@torch.no_grad()
def test_multiply_adds_of_the_encoder(bench):
    images = torch.randn(2, 3, 64, 96)
    with FlopCounterMode(display=False) as counter:
        plain.plain_encode(bench.visual, images)
    work = floor.encoder_work(bench.visual, (64, 96), 2)
    assert 2 * work.multiply_adds == counter.get_total_flops()


def test_a_floor_is_the_longer_of_arithmetic_and_memory():
    machine = floor.Machine({"float32": 100.0, "float16": 400.0}, 10.0)
    assert machine.floor(floor.Work(500, 20), "float32") == 5
    assert machine.floor(floor.Work(500, 20), "float16") == 2
    assert floor.cost_map_work(2, 3, 5, 7) == (210, 4 * (2 * 3 * 12 + 35))
