"""The check on the installed packages passes for what is right, fails for what is broken, and is remembered."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig
from typer.testing import CliRunner

from tests.methods.examples import EXAMPLES
from tests.methods.test_methods import MERGING
from tests.support.oracle import FLASH, register_attention
from vtw_eval import VTW, Baseline, DyVTE, FastV, Method, PyramidDrop, families
from vtw_eval.anatomy import find_anatomy
from vtw_eval.checkpoints import CHECKPOINT
from vtw_eval.cli import app
from vtw_eval.engine import arguments as layer_arguments
from vtw_eval.engine import cache as engine_cache
from vtw_eval.engine import choose, hooks, masks
from vtw_eval.families import TESTED
from vtw_eval.methods import parse_method
from vtw_eval.methods.dart import DART
from vtw_eval.methods.framefusion import FrameFusion
from vtw_eval.methods.frames import FrameMethod
from vtw_eval.verify import touch_points, verdict
from vtw_eval.verify.check import MismatchError, check_method, check_search, make_subject
from vtw_eval.verify.tiny import family_config, make_inputs, make_model, shrink
from vtw_eval.verify.verdict import VerificationError, verify_config
from vtw_eval.versions import UpstreamChangedError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of verdicts and of tiny models."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield tmp_path / "vtw-eval" / "verified"
    verdict._subject.cache_clear()


def check(family: str, method: Method, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> tuple[str, ...]:
    return check_method(make_subject(shrink(family_config(family)), attention, dtype, CPU), method)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3", "paligemma", "cohere2_vision"])
def test_every_method_passes(family: str) -> None:
    subject = make_subject(shrink(family_config(family)), "sdpa", torch.float32, CPU)
    found = find_anatomy(subject.model)
    for label, example in EXAMPLES.items():
        method = example.stand_in(found).bind(found)
        done = check_method(subject, method)
        merges = label in MERGING and getattr(method, "recycle", True)
        rearranges = method.positions == "rearrange" and family == "gemma3"
        nothing = isinstance(method, FrameMethod | FrameFusion)  # or next to nothing: an image is a video of one frame
        assert ("masking" in done) != (merges or rearranges) or nothing, method
    assert check_search(subject) == ("search",)
    assert "attention" in check_method(subject, FastV(k=2))
    assert "keys" in check_method(subject, DART(k=2, r=0.5))


@pytest.mark.parametrize("family", sorted(TESTED - {"internvl_chat"}))
def test_every_family_can_be_made_small(family: str) -> None:
    config = family_config(family)
    small = shrink(config)
    model = make_model(small, "eager", torch.float32, CPU)
    assert sum(parameter.numel() for parameter in model.parameters()) < 500_000
    before, after = (c.get_text_config(decoder=True) for c in (config, small))
    assert after.num_hidden_layers == before.num_hidden_layers
    assert getattr(after, "layer_types", None) == getattr(before, "layer_types", None)
    assert ("image_grid_thw" in make_inputs(model).keywords()) == (
        family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v")
    )
    assert "masking" in check(family, VTW(k=1), "eager")


def test_flash_attention_is_compared_too() -> None:
    register_attention()
    for method in (VTW(k=2), FastV(k=1), PyramidDrop()):
        assert "masking" in check("llava", method, FLASH)


def test_half_precision_is_judged_by_its_own_rounding() -> None:
    done = check("llava", VTW(k=2), dtype=torch.bfloat16)
    assert done == ("counts",) or "masking" in done


advance, last_query_attention, gathered_mask = choose.advance, choose.last_query_attention, masks.gathered_mask
rotated_keys = choose.rotated_keys
Reduced = engine_cache.ReducedCache


def first_row_for_all(layout: Any, keep: Tensor) -> Any:
    return advance(layout, keep & keep[:1])


def another_query(layer: Any, hidden: Any, arguments: Any, config: Any, last: Tensor, valid: Any) -> Tensor:
    return last_query_attention(layer, hidden, arguments, config, last - 1, valid)


def padding_seen(mask: Any, queries: Any, keys: Any, valid: Tensor, **more: Any) -> Tensor:
    return gathered_mask(mask, queries, keys, torch.ones_like(valid), **more)


MUTANTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "the accident: no cache is found": (hooks, "cache_of", lambda arguments: None),
    "masks of removed tokens are forgotten": (layer_arguments, "reduced_mask", lambda *args, **more: None),
    "the cache tells how long it really is": (
        Reduced,
        "get_mask_sizes",
        lambda self, q, i: super(Reduced, self).get_mask_sizes(q, i),
    ),
    "a decode step has the position of the kept tokens": (
        Reduced,
        "get_seq_length",
        lambda self, i=0: super(Reduced, self).get_seq_length(i),
    ),
    "all rows keep what the first keeps": (choose, "advance", first_row_for_all),
    "scores of another query": (choose, "last_query_attention", another_query),
    "keys of another token": (choose, "rotated_keys", lambda *args: rotated_keys(*args).roll(1, dims=1)),
    "padding is seen": (masks, "gathered_mask", padding_seen),
    "nothing goes": (choose, "pick", lambda tensor, index, dim: tensor),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_engine_does_not_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*MUTANTS[name])
    method = {
        "scores of another query": FastV(k=2),
        "keys of another token": DART(k=2, r=0.5),
        "the cache tells how long it really is": VTW(k=0),
    }.get(name, VTW(k=2))
    with pytest.raises(VerificationError, match="does not compute what it should on a small llava"):
        verify_config(family_config("llava"), method, "sdpa")


def test_a_refusal_says_what_differs_what_is_installed_and_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "check_method", failing := Failing())
    with pytest.raises(VerificationError) as caught:
        verify_config(family_config("qwen2_vl"), VTW(k=2), "eager")
    for part in (
        r"^vtw,k=2,position=keep does not compute what it should on a small qwen2_vl with eager attention: ",
        "logits differ",
        r"transformers \S+ is installed; vtw-eval \S+ is tested with transformers>=5",
        r"torch \S+ is installed",
        r"--no-verify, or verify=False",
    ):
        assert re.search(part, str(caught.value)), part
    with pytest.raises(VerificationError):  # a failure is not remembered
        verify_config(family_config("qwen2_vl"), VTW(k=2), "eager")
    assert failing.calls == 2


class Failing:
    calls = 0

    def __call__(self, *args: Any) -> tuple[str, ...]:
        self.calls += 1
        raise MismatchError("logits differ")


class Counting:
    calls = 0

    def __call__(self, *args: Any) -> tuple[str, ...]:
        self.calls += 1
        return ("counts",)


def test_a_verdict_is_found_once_for_each_combination(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "check_method", counting := Counting())
    config = family_config("llava")
    first = verify_config(config, VTW(k=2), "sdpa")
    assert verify_config(config, VTW(k=2), "sdpa") == first
    assert counting.calls == 1
    assert str(first) == f"verified with torch {version('torch')}, transformers {version('transformers')}"
    verify_config(config, VTW(k=2), "sdpa", fresh=True)
    verify_config(config, VTW(k=1), "sdpa")
    verify_config(config, VTW(k=2), "eager")
    verify_config(family_config("llava_next"), VTW(k=2), "sdpa")
    assert counting.calls == 5
    monkeypatch.setattr(verdict, "environment", lambda: {**first.environment, "transformers": "5.99.0"})
    verify_config(config, VTW(k=2), "sdpa")
    assert counting.calls == 6
    (kept := sorted(cache.iterdir())[0]).write_text("{")
    assert len(list(cache.iterdir())) == 5
    for other in sorted(cache.iterdir()):
        other.unlink() if other != kept else None
    verify_config(config, VTW(k=2), "sdpa")
    assert counting.calls == 7


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert verify_config(family_config("llava"), Baseline(), "sdpa").verified


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), KeyboardInterrupt()])
def test_running_out_of_memory_is_no_verdict(
    error: BaseException, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*args: Any) -> tuple[str, ...]:
        raise error

    monkeypatch.setattr(verdict, "check_method", run)
    with pytest.raises(type(error)):
        verify_config(family_config("llava"), VTW(k=2), "sdpa")
    assert not cache.exists()


def test_the_embedded_checkpoint_with_its_gates_passes() -> None:
    config: PreTrainedConfig = AutoConfig.from_pretrained(CHECKPOINT)
    for method in (DyVTE(), parse_method("vtw,k=search"), VTW(k=9)):
        assert verify_config(config, method, "sdpa").verified


def raise_changed() -> None:
    raise UpstreamChangedError("torch counts otherwise", "torch")


broken = touch_points.TouchPoint("torch", "counting", "a.py", "count", "counts would be wrong", raise_changed)


def test_the_command_prints_a_table_and_tells_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    run = CliRunner().invoke
    shown = run(app, ["verify", "--family", "llava", "--method", "vtw,k=1", "--method", "fastv"])
    assert shown.exit_code == 0, shown.output
    assert "4 of 4 agree with masked attention" in shown.output
    assert re.search(r"llava +sdpa +ok +ok\n *llava +eager +ok +ok", shown.output)
    monkeypatch.setattr(verdict, "check_method", Failing())
    shown = run(app, ["verify", "--family", "llava", "--method", "vtw,k=1", "--attention", "sdpa"])
    assert shown.exit_code == 1
    assert "0 of 1 agree" in shown.output
    assert "logits differ" in shown.stderr
    monkeypatch.setattr(touch_points, "TOUCH_POINTS", (broken,))
    monkeypatch.setattr("vtw_eval.sweep.harness.harness_names", list)
    monkeypatch.setattr(verdict, "check_method", Counting())
    monkeypatch.setattr(families, "TESTED", frozenset({"llava"}))
    monkeypatch.setattr(families, "DECODER_TESTED", frozenset())
    shown = run(app, ["verify", "--all", "--method", "vtw,k=1"])
    assert shown.exit_code == 1
    assert "2 of 2 agree" in shown.output and "0 of 1 things" in shown.output
    assert "vtw-eval verify: torch: torch counts otherwise" in shown.stderr
    for arguments, message in [
        ([], "give --all"),
        (["--family", "lava"], "did you mean 'llava'?"),
        (["--family", "llava", "--method", "vtv"], "did you mean 'vtw'?"),
    ]:
        shown = run(app, ["verify", *arguments])
        assert shown.exit_code == 2
        assert message in shown.stderr
