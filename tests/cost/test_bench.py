"""The benchmark: statistics, parsing, what it reports. No test looks at how long anything took."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.methods.examples import EXAMPLES
from tests.support.checkpoints import make_checkpoint
from vtw_eval.anatomy import find_anatomy
from vtw_eval.checkpoints import CHECKPOINT
from vtw_eval.cli import app
from vtw_eval.cost.bench.choosing import every_method, without_repeats
from vtw_eval.cost.bench.found import Bench
from vtw_eval.cost.bench.memory import peak_bytes
from vtw_eval.cost.bench.run import BenchOutcome, BenchPlan, measure, parse_methods, run_once
from vtw_eval.cost.bench.subject import Subject, make_prompt, random_subject
from vtw_eval.cost.bench.table import choice_table, setting_table
from vtw_eval.cost.bench.timing import CudaClock, HostClock, clock_for, interleaved, paired_ratios, spread
from vtw_eval.cost.exact import exact_prefill_flops
from vtw_eval.cost.geometry import Geometry, VisionGeometry
from vtw_eval.cost.presets import get_geometry
from vtw_eval.methods import METHODS, VTW, Baseline, make_method, parse_method

CPU = torch.device("cpu")
TINY = Geometry(
    name="tiny",
    layers=4,
    hidden=32,
    heads=4,
    kv_heads=2,
    head_dim=8,
    ffn=48,
    gated=True,
    vocab=100,
    vision=VisionGeometry(layers=2, hidden=16, ffn=24, heads=2, tokens=10, patches=9, patch_dim=12, features=9),
    projector=((16, 32), (32, 32)),
    vision_tokens=9,
)
TEXT, VISION = 7, 9


@pytest.fixture(scope="module")
def subject() -> Subject:
    return random_subject(TINY, torch.float32, CPU, seed=0)


def flops_by_hand(tokens: list[int]) -> float:
    """Two FLOPs per multiply-add of q, k, v, o, FFN, QK^T, AV, and of the head on one token."""
    matrices = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48
    return 2.0 * (sum(s * matrices + 2 * s * s * 32 for s in tokens) + 32 * 100)


class Ticks:
    """A clock on which every mark is one second after the one before, and every note a quarter of one."""

    def __init__(self, look: Callable[[], Any] = lambda: None) -> None:
        self.now = 0.0
        self.look = look
        self.seen: list[Any] = []

    def mark(self) -> float:
        self.now += 1
        self.seen.append(self.look())
        return self.now

    def note(self) -> float:
        self.now += 0.25
        return self.now

    def seconds(self, begin: float, end: float) -> float:
        return float(end - begin)


# --- statistics


def test_rounds_are_interleaved_in_changing_order() -> None:
    names = ["a", "b", "c", "d"]
    runs = list(interleaved(names, 30, seed=0))
    rounds = [[name for i, name in runs if i == r] for r in range(30)]
    assert runs == [(r, name) for r, order in enumerate(rounds) for name in order]
    assert all(sorted(order) == names for order in rounds)
    assert {order[0] for order in rounds} == set(names) == {order[-1] for order in rounds}
    assert len({tuple(order) for order in rounds}) > 10
    assert runs == list(interleaved(names, 30, seed=0)) != list(interleaved(names, 30, seed=1))


def test_quartiles() -> None:
    values = [0.3, 0.1, 5.0, 0.2, 0.25, 0.4]
    found = spread(values)
    assert (found.q1, found.median, found.q3) == pytest.approx(np.percentile(values, [25, 50, 75]))
    assert spread([2.0]).model_dump() == {"median": 2.0, "q1": 2.0, "q3": 2.0}
    with pytest.raises(ValueError, match="no measurement"):
        spread([])


def test_ratios_are_paired_within_a_round() -> None:
    base = {0: 1.0, 1: 4.0, 2: 2.0, 3: 100.0}  # a machine that was busy in round 1 and again in round 3
    method = {0: 0.5, 2: 1.0, 3: 50.0, 4: 7.0}
    assert paired_ratios(method, base) == [0.5, 0.5, 0.5]
    assert spread(list(method.values())).median / spread(list(base.values())).median != 0.5


# --- clocks


def test_a_cuda_mark_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    times = itertools.count(step=250)

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: object) -> None:
            self.at = next(times)
            log.append(f"record on {stream}")

        def synchronize(self) -> None:
            log.append("wait")

        def elapsed_time(self, end: Event) -> float:
            return float(end.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    clock = CudaClock(torch.device("cuda:1"))
    begin, end = clock.mark(), clock.mark()
    assert log == ["record on stream of cuda:1", "wait"] * 2
    assert clock.seconds(begin, end) == 0.25


def test_clock_of_a_device() -> None:
    assert isinstance(clock_for(CPU), HostClock)
    assert isinstance(clock_for(torch.device("cuda", 0)), CudaClock)
    with pytest.raises(ValueError, match="choose cpu or cuda"):
        clock_for(torch.device("meta"))


def test_marks_enclose_the_phases_of_a_run(subject: Subject) -> None:
    begun: list[str] = []
    decoder = find_anatomy(subject.model).decoder
    handles = [
        subject.model.model.vision_tower.register_forward_pre_hook(lambda *_: begun.append("tower")),
        decoder.register_forward_pre_hook(lambda *_: begun.append("decoder")),
        subject.model.lm_head.register_forward_hook(lambda *_: begun.append("head")),
    ]
    clock = Ticks(look=lambda: list(begun))
    prompt = make_prompt(subject, rows=2, text=TEXT, vision=VISION, seed=0)
    outcome = run_once(subject, prompt, VTW(k=2), 4, clock)
    for handle in handles:
        handle.remove()
    new = [after[len(before) :] for before, after in itertools.pairwise(clock.seen)]
    assert clock.seen[0] == []
    assert new == [["tower"], *[["decoder", "head"]] * 4]
    timings = outcome.timings
    assert (timings.vision, timings.prefill, timings.steps) == (1.0, 1.5, (1.0, 1.0, 1.0))
    assert (timings.first_token, timings.step, timings.total) == (2.5, 1.0, 5.5)
    assert timings.choice == 0.25


def test_a_choice_is_what_runs_once_more_and_nothing_else(subject: Subject) -> None:
    log: list[str] = []

    class Logged(Ticks):
        def note(self) -> float:
            log.append("note")
            return super().note()

    def noted(what: str) -> Callable[..., None]:
        return lambda *_: log.append(what)

    layers = find_anatomy(subject.model).layers
    handles = [layer.register_forward_hook(noted(f"layer {i}")) for i, layer in enumerate(layers)]
    handles += [layer.self_attn.k_proj.register_forward_hook(noted(f"keys {i}")) for i, layer in enumerate(layers)]
    prompt = make_prompt(subject, rows=2, text=TEXT, vision=VISION, seed=0)
    outcome = run_once(subject, prompt, parse_method("fastv,k=2,r=0.5"), 2, Logged())
    for handle in handles:
        handle.remove()
    before = ["keys 0", "layer 0", "keys 1", "layer 1"]
    prefill = [*before, "note", "keys 1", "note", "keys 2", "layer 2", "keys 3", "layer 3"]
    assert log[: len(prefill)] == prefill and "note" not in log[len(prefill) :]
    # Two rows of 16 tokens: k on all, q and v on one, one query and all keys; 32 wide, keys and values 16.
    assert outcome.choice_flops == 2 * 2 * (16 * 32 * 16 + 32 * (32 + 16) + 16 * 32)


def test_the_baseline_is_the_model_without_hooks(subject: Subject) -> None:
    decoder = find_anatomy(subject.model).decoder
    prompt = make_prompt(subject, rows=1, text=TEXT, vision=VISION, seed=0)
    counts = {}
    for method in (Baseline(), VTW(k=2)):
        clock = Ticks(look=lambda: len(decoder._forward_pre_hooks))
        run_once(subject, prompt, method, 2, clock)
        counts[method.key] = set(clock.seen)
    assert counts == {"baseline": {0}, "vtw": {1}}


# --- specs


def test_methods_are_named_as_they_are_asked_for_and_not_repeated() -> None:
    found = parse_methods(["vtw", "fastv+vtw, fastv.k=2,vtw.k=12", "fastv,k=2,r=0.5", "fastv", "vtw,k=12"], 24)
    assert list(found) == ["vtw", "fastv+vtw,fastv.k=2,vtw.k=12", "fastv,k=2,r=0.5", "vtw,k=12"]
    assert found["vtw"] == VTW() and found["fastv,k=2,r=0.5"] == make_method("fastv")
    assert str(found["fastv+vtw,fastv.k=2,vtw.k=12"]).endswith("vtw.k=12,vtw.position=keep")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("vtv,k=2", "did you mean 'vtw'"),
        ("fastv,kk=2", "unknown parameter 'kk'"),
        ("k=2,vtw", "bad part 'vtw'"),
        ("vtw,k=25", "k=25 is out of range: the model has 24"),
        ("fastv+vtw,fastv.k=2,vtw.k=25", "vtw.k=25 is out of range"),
        ("vtw,k=search", "nothing to search on"),
        ("fastv,r=half", "bad value"),
        ("vtw,k=2,fastv", "bad part 'fastv' in method spec"),
        ("vtw,k=2,k=3", "'k' stands twice"),
        ("baseline,vtw", "bad part 'vtw'"),
        ("tome,per_layer=5,r=0.1", "not both"),
    ],
)
def test_a_spec_is_one_method_spelled_as_everywhere(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_methods([spec], 24)


# --- measuring


FIXED = {label: method for label, method in EXAMPLES.items() if "dyvte" not in label}  # whose gates are of one size


@pytest.mark.parametrize("label", list(FIXED))
@pytest.mark.parametrize("rows", [1, 3])
def test_the_real_cache_is_what_the_trace_says(subject: Subject, label: str, rows: int) -> None:
    prompt = make_prompt(subject, rows=rows, text=TEXT, vision=VISION, seed=0)
    outcome = run_once(subject, prompt, FIXED[label], 3, Ticks())
    slots = outcome.tokens_per_layer.amax(dim=0).tolist()
    assert outcome.kv_bytes == sum(2 * 4 * rows * 2 * 8 * tokens for tokens in slots)
    assert outcome.tokens_per_layer.shape == (rows, 4)
    if label == "vtw":
        assert slots == [16, 16, 7, 7]


def test_measured_rows(subject: Subject) -> None:
    plan = BenchPlan(
        methods=parse_methods(["vtw,k=1", "fastv,k=2"], 4),
        text=TEXT,
        vision=VISION,
        batches=(2,),
        rounds=3,
        warmup=1,
        output_tokens=3,
    )
    done: list[int] = []
    (setting,) = measure(subject, plan, clock=Ticks(), advance=lambda: done.append(1))
    assert len(done) == plan.runs == 3 * 5
    base, vtw, fastv = setting.rows
    assert [row.method for row in setting.rows] == ["baseline", "vtw,k=1", "fastv,k=2"]
    assert {row.status for row in setting.rows} == {"done"}
    assert base.prefill_flops == 2 * flops_by_hand([16] * 4)
    assert vtw.prefill_flops_ratio == flops_by_hand([16, 7, 7, 7]) / flops_by_hand([16] * 4)
    assert fastv.prefill_flops_ratio == flops_by_hand([16, 16, 12, 12]) / flops_by_hand([16] * 4)  # 4.5 of 9 is 5
    assert vtw.ratios is not None and vtw.ratios.prefill.median == 1.5
    assert vtw.prefill_over_flops == pytest.approx(1.5 / vtw.prefill_flops_ratio)
    assert base.choice is base.choice_share is None and base.ratios is not None and base.ratios.choice is None
    assert fastv.choice is not None and fastv.choice_share is not None and vtw.ratios.choice is not None
    assert (fastv.choice.median, fastv.choice_share.median, vtw.ratios.choice.median) == (0.25, 0.25 / 1.5, 0.25)
    assert vtw.choice_flops == 0 and fastv.choice_flops
    lines = choice_table(setting).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| baseline", "| vtw,k=1", "| fastv,k=2"]
    assert "| 250 ms [250, 250] | 16.67 % [16.67, 16.67] | 25.00 % [25.00, 25.00] | 0.00 % |" in lines[3]
    share = 100 * fastv.choice_flops / base.prefill_flops
    assert lines[4].endswith(f"| {share:.2f} % |")
    assert sorted(vtw.runs) == [0, 1, 2]
    assert base.kv_bytes == 2 * 2 * 4 * 2 * 8 * 64 and vtw.kv_bytes == 2 * 2 * 4 * 2 * 8 * 37
    assert base.peak_bytes is not None and vtw.peak_bytes is not None and base.peak_bytes > vtw.peak_bytes > 0


def test_many_methods_stand_one_below_the_other(subject: Subject) -> None:
    plan = BenchPlan(
        methods=parse_methods([f"vtw,k={k}" for k in range(4)], 4), text=TEXT, vision=VISION, rounds=1, warmup=0
    )
    [setting] = measure(subject, plan, clock=Ticks())
    beside = [line.split(" | ") for line in setting_table(setting, 0).splitlines()]
    rows = [setting.rows[0], *[row for row in setting.rows[1:] for _ in range(2)]]
    below = [line.split(" | ") for line in setting_table(setting.model_copy(update={"rows": rows}), 0).splitlines()]
    assert beside[0][1:3] == ["baseline", "vtw,k=0"] and [line[0] for line in below[2:4]] == ["| baseline", "| vtw,k=0"]
    place = below[0].index("Decoder prefill")
    [prefills] = [line for line in beside if line[0] == "| Decoder prefill"]
    assert below[3][place] == below[4][place] == prefills[2]


def test_all_methods_are_those_that_the_model_takes(subject: Subject) -> None:
    methods, left_out = every_method(subject.model)
    assert {*methods, *left_out} == {*METHODS} - {"baseline"} and not {*methods} & {*left_out}
    assert "needs gates trained for" in left_out["dyvte"] and "give order=" in left_out["shortv"]
    assert methods["fastv"] == make_method("fastv") and "visionzip" in methods
    named = parse_methods(["fastv,k=1", "vtw,k=1", "vtw,k=2", "fastv+vtw"], 4)
    chosen = without_repeats(methods, named)
    assert list(chosen)[-4:] == list(named) and "vtw" not in chosen and "fastv" not in chosen and "first" in chosen


def test_no_memory_for_one_method_is_reported_and_the_others_go_on(subject: Subject) -> None:
    calls: dict[str, int] = {"vtw": 0, "fastv": 0, "rand": 0, "baseline": 0}

    def run(subject: Subject, prompt: Any, method: Any, tokens: int, clock: Any) -> BenchOutcome:
        calls[method.key] += 1
        if method.key == "fastv" and calls["fastv"] == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nand more")
        if method.key == "rand":
            raise RuntimeError("something else")
        return run_once(subject, prompt, method, tokens, clock)

    plan = BenchPlan(
        methods=parse_methods(["vtw", "fastv", "rand"], 4),
        text=TEXT,
        vision=VISION,
        output_tokens=3,
        rounds=3,
        warmup=1,
    )
    (setting,) = measure(subject, plan, clock=Ticks(), run=run)
    rows = {row.method: row for row in setting.rows}
    assert rows["fastv"].status == "out of memory" and rows["fastv"].prefill is None
    assert rows["fastv"].error == "CUDA out of memory. Tried to allocate 20.00 GiB."
    assert rows["rand"].status == "failed" and rows["rand"].error == "something else"
    assert rows["vtw"].status == rows["baseline"].status == "done"
    assert calls == {"vtw": 5, "baseline": 5, "fastv": 3, "rand": 1}
    assert "| out of memory" in setting_table(setting, 0)


def test_no_memory_for_the_baseline_leaves_no_ratios(subject: Subject) -> None:
    def run(subject: Subject, prompt: Any, method: Any, tokens: int, clock: Any) -> BenchOutcome:
        if method.key == "baseline":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return run_once(subject, prompt, method, tokens, clock)

    plan = BenchPlan(methods=parse_methods(["vtw"], 4), text=TEXT, vision=VISION, output_tokens=3, rounds=2)
    (setting,) = measure(subject, plan, clock=Ticks(), run=run)
    base, vtw = setting.rows
    assert base.status == "out of memory"
    assert vtw.status == "done" and vtw.ratios is None and vtw.prefill is not None


def test_a_method_that_did_not_do_what_it_reports_has_failed(subject: Subject) -> None:
    def run(subject: Subject, prompt: Any, method: Any, tokens: int, clock: Any) -> BenchOutcome:
        outcome = run_once(subject, prompt, method, tokens, clock)
        return replace(outcome, kv_bytes=8192) if method.key == "vtw" else outcome

    plan = BenchPlan(methods=parse_methods(["vtw"], 4), text=TEXT, vision=VISION, output_tokens=3, rounds=1)
    (setting,) = measure(subject, plan, clock=Ticks(), run=run)
    assert setting.rows[1].status == "failed"
    assert "the KV cache holds 8192 bytes where its trace says" in setting.rows[1].error


def test_peak_is_what_lives_at_once() -> None:
    start = torch.zeros(1000, 1000)

    def run() -> None:
        a = start * start  # 4 MB
        b = a @ a  # 8 MB
        del a
        c = b @ b  # 8 MB again
        del b, c

    assert 8_000_000 <= peak_bytes(run, CPU) < 8_001_000


def test_settings_are_all_pairs(subject: Subject) -> None:
    plan = BenchPlan(
        methods={}, text=TEXT, vision=VISION, batches=(1, 2), attentions=("sdpa", "eager"), rounds=1, warmup=0
    )
    settings = measure(subject, plan, clock=Ticks())
    assert [(s.attention, s.batch) for s in settings] == [("sdpa", 1), ("sdpa", 2), ("eager", 1), ("eager", 2)]
    subject.model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("options", [{"output_tokens": 1}, {"rounds": 0}, {"warmup": -1}, {"batches": (1, 0)}])
def test_bad_plans(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        BenchPlan(methods={}, text=TEXT, vision=VISION, **options)


# --- models


def test_a_built_model_has_the_geometry(subject: Subject) -> None:
    assert Geometry.from_config(subject.model.config, "tiny") == TINY
    weights = [p.detach() for p in subject.model.parameters() if p.ndim > 1]
    assert all(0.01 < float(p.std()) < 0.03 for p in weights if p.numel() > 500)
    assert all(bool(p.isfinite().all()) for p in subject.model.parameters())


def test_prompts_have_the_lengths_asked_for(subject: Subject) -> None:
    prompt = make_prompt(subject, rows=2, text=TEXT, vision=20, seed=0)  # three images of nine tokens
    assert prompt.pixels is not None and prompt.pixels.shape == (6, 3, 6, 6)
    assert prompt.vision.sum(dim=1).tolist() == [20, 20]
    assert ((prompt.ids == 99) == prompt.vision).all()
    assert prompt.embed(subject.model).shape == (2, TEXT + 20, 32)
    with pytest.raises(ValueError, match="a prompt needs 2 or more"):
        make_prompt(subject, rows=1, text=1, vision=9, seed=0)


def test_a_tower_without_a_llava_is_left_out_and_says_so() -> None:
    other = random_subject(replace(TINY, vision=None, projector=()), torch.float32, CPU, seed=0)
    assert "not timed" in other.note
    plan = BenchPlan(methods={"v": VTW(k=1)}, text=TEXT, vision=VISION, output_tokens=3, rounds=1, warmup=0)
    [setting] = measure(other, plan, clock=Ticks())
    for row in setting.rows:
        assert row.status == "done" and row.prefill is not None and row.step is not None and row.ratios is not None
        assert row.vision is row.first_token is row.tokens_per_second is row.ratios.first_token is None
    shown = setting_table(setting, 1)
    for label in ("Decoder prefill", "Decode step", "Prefill time / FLOPs"):
        assert f"| {label} " in shown
    for label in ("Vision part", "First token", "Tokens/s"):
        assert label not in shown


@pytest.mark.parametrize("change", [{"gated": False}, {"windows": (4, None, 4, None)}])
def test_shapes_that_cannot_be_built(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="cannot be built"):
        random_subject(replace(TINY, **change), torch.float32, CPU, seed=0)


# --- the command


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", *arguments])


def test_a_checkpoint_is_measured_as_it_is() -> None:
    result = invoke(
        *("--model", str(CHECKPOINT), "--device", "cpu", "--method", "vtw,k=5", "--method", "dyvte", "--text", "20"),
        *("--output-tokens", "3", "--repeats", "1", "--warmup", "0"),
    )
    assert result.exit_code == 0, result.output
    header, _, *rows = [line for line in result.output.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in header.strip("|").split("|")][1:] == ["baseline", "vtw,k=5", "dyvte"]
    assert not any("failed" in row or "out of memory" in row for row in rows)
    [flops] = [row for row in rows if "Prefill GFLOPs" in row]
    # 84 tokens in all layers, or 20 text tokens from layer 5 on; the checkpoint's config tells the sizes
    share = exact_prefill_flops([84] * 5 + [20] * 5, get_geometry(CHECKPOINT)) / exact_prefill_flops(
        [84] * 10, get_geometry(CHECKPOINT)
    )
    assert f"({share:.2f}x)" in flops


def test_of_a_checkpoint_whose_tower_is_not_timed_no_row_claims_it(tmp_path: Path) -> None:
    folder = make_checkpoint("qwen2_vl", tmp_path / "qwen2_vl")
    result = invoke(
        *("--model", str(folder), "--device", "cpu", "--method", "vtw,k=1", "--text", "9", "--vision", "16"),
        *("--output-tokens", "3", "--repeats", "1", "--warmup", "0", "--no-verify", "-o", str(tmp_path / "out")),
    )
    assert result.exit_code == 0, result.output
    assert "are not timed" in result.output and "| Decoder prefill " in result.output
    for words in ("Vision part", "First token", "Tokens/s"):
        assert words not in result.output
    found = Bench.model_validate_json((tmp_path / "out" / "bench.json").read_text())
    assert all(row.status == "done" and row.first_token is None for row in found.settings[0].rows)


def test_results_of_older_versions_are_read() -> None:
    file = Path(__file__).parents[2] / "results" / "bench" / "cpu" / "bench.json"
    found = Bench.model_validate_json(file.read_text())
    assert all(row.first_token is not None and row.spec == "" for s in found.settings for row in s.rows)
    assert "| First token " in setting_table(found.settings[0], found.model_bytes)


def test_command_end_to_end(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["vtw-eval", "bench", "--geometry", "shape", "--method", "vtw"])
    subject.model.config.save_pretrained(tmp_path / "shape")
    result = invoke(
        *("--geometry", str(tmp_path / "shape"), "--device", "cpu", "--method", "vtw", "--method", "fastv"),
        *("--method", "random_vision,k=1", "--text", "7", "--batch", "1,2", "--output-tokens", "3", "--repeats", "2"),
        *("-o", str(tmp_path / "out")),
    )
    assert result.exit_code == 0, result.output
    found = Bench.model_validate_json((tmp_path / "out" / "bench.json").read_text())
    assert [s.batch for s in found.settings] == [1, 2] and found.settings[0].vision == 9
    assert [row.spec for row in found.settings[1].rows] == [
        str(parse_method(spec)) for spec in ("baseline", "vtw,k=2", "fastv", "random_vision,k=1")
    ]
    assert [row.method for row in found.settings[1].rows] == ["baseline", "vtw", "fastv", "random_vision,k=1"]
    exact = flops_by_hand([16, 16, 7, 7]) / flops_by_hand([16] * 4)
    assert all(s.rows[1].prefill_flops_ratio == exact for s in found.settings)
    assert found.device.startswith("cpu: ") and found.threads == torch.get_num_threads()
    assert found.model_bytes == sum(p.nbytes for p in subject.model.parameters())
    text = (tmp_path / "out" / "bench.md").read_text()
    assert text in result.output
    assert f"/ {exact:.3f} = " in text and "Made by `vtw-eval bench --geometry shape --method vtw`." in text
    assert json.loads((tmp_path / "out" / "bench.json").read_text())["environment"] in text
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"bench.json", "bench.md"}


def test_the_command_takes_all_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = {key: METHODS[key] for key in ("baseline", "vtw", "fastv", "shortv", "vscan")}
    monkeypatch.setattr("vtw_eval.cost.bench.choosing.METHODS", some)
    result = invoke(
        *("--model", str(CHECKPOINT), "--device", "cpu", "--method", "fastv,k=3", "--method", "all", "--text", "9"),
        *("--output-tokens", "2", "--repeats", "1", "--warmup", "0", "--no-verify", "-o", str(tmp_path)),
    )
    assert result.exit_code == 0, result.output
    found = Bench.model_validate_json((tmp_path / "bench.json").read_text())
    assert [row.method for row in found.settings[0].rows] == ["baseline", "vtw", "vscan", "fastv,k=3"]
    assert list(found.left_out) == ["shortv"] and "- shortv: shortv has a published list" in result.output
    assert "| of the unchanged prefill |" in result.output and "Choice: all that a method does" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of --geometry NAME and --model"),
        (["--geometry", "llava-0.5b", "--model", "x"], "one of --geometry NAME and --model"),
        (["--geometry", "llava-0.5"], "unknown geometry 'llava-0.5'; did you mean 'llava-0.5b'?"),
        (["--geometry", "llava-0.5b", "--method", "vtv"], "unknown method 'vtv'; did you mean 'vtw'?"),
        (["--geometry", "llava-0.5b", "--method", "vtw,k=25"], "the model has 24 decoder layers"),
        (["--geometry", "llava-0.5b", "--device", "gpu"], "unknown device 'gpu'"),
        (["--geometry", "llava-0.5b", "--dtype", "flaot16"], "unknown dtype 'flaot16'; did you mean 'float16'?"),
        (["--geometry", "qwen2-vl-2b", "--device", "cpu"], "give --vision"),
        (["--geometry", "llava-0.5b", "--batch", "1;8"], "such as 1,8"),
    ],
)
def test_command_errors(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vtw_eval.cost.bench.subject.random_subject", _no_model)
    result = invoke("--device", "cpu", *arguments)
    assert result.exit_code == 2
    assert message in result.output


def _no_model(geometry: Geometry, *_: Any) -> Any:
    """Stands in for a model, for mistakes that are found before anything runs."""
    return SimpleNamespace(geometry=geometry)


def test_help_has_an_example() -> None:
    text = " ".join(invoke("--help").output.split())
    assert "Examples: vtw-eval bench --geometry llava-0.5b --device cpu --method vtw --method fastv,k=2,r=0.5" in text
    assert "--method all" in text
