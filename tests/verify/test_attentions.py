"""Attention implementations: those that are served, those that are not, and what is missing to run one."""

from __future__ import annotations

import pytest
import torch
from transformers import AttentionInterface
from typer.testing import CliRunner

from tests.support.oracle import FLASH, register_attention
from vtw_eval.cli import app
from vtw_eval.models.llava import LlavaOptions
from vtw_eval.models.loading import load
from vtw_eval.verify import attentions
from vtw_eval.verify.attentions import check_attention, names, standing

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_flash_attention_needs_a_gpu_and_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attentions, "find_spec", lambda name: None)
    for device, message in (
        (CPU, r"it needs a GPU and flash-attn \(pip install --no-build-isolation 'vtw-eval\[flash\]'\) or kernels"),
        (GPU, r"it needs flash-attn .* or kernels \(pip install kernels\)\. Or take 'sdpa'"),
    ):
        with pytest.raises(ValueError, match=f"attn_implementation='flash_attention_2' cannot run here: {message}"):
            check_attention("flash_attention_2", device)
    for name in ("flash_attention_3", "flash_attention_4", "kernels-community/flash-attn2"):
        with pytest.raises(ValueError, match=r"it needs kernels \(pip install kernels\)\. Or take 'sdpa'"):
            check_attention(name, GPU)
    for package, served in {
        "flash_attn": {"flash_attention_2"},
        "flash_attn_interface": {"flash_attention_3"},
        "kernels": {"flash_attention_2", "flash_attention_3", "flash_attention_4", *attentions.HUB},
    }.items():
        monkeypatch.setattr(attentions, "find_spec", lambda name, there=package: True if name == there else None)
        assert {n for n in names() if attentions.needs_gpu(n) and not standing(n, GPU).missing} == served
        assert standing("flash_attention_2", CPU).missing.startswith("a GPU")


def test_a_checkpoint_is_not_opened_with_an_attention_that_cannot_run() -> None:
    for name, message in (
        ("flash_attention_2", "cannot run here: it needs a GPU"),
        ("flash_atention_2", "is unknown; did you mean 'flash_attention_2'"),
        ("somebody/their-kernel", "cannot run here: it needs a GPU"),
    ):
        options = LlavaOptions(pretrained="shapes", attn_implementation=name)
        with pytest.raises(ValueError, match=message):
            load("llava_vtw", options, simple=False, device=CPU)


def test_what_is_served() -> None:
    register_attention()
    for name in ("eager", "sdpa", FLASH):
        assert str(standing(name, CPU)) == "served"
    assert "flex_attention masks cannot be cut" in standing("flex_attention", CPU).refused
    AttentionInterface.register("without_masks", lambda *args, **kwargs: None)
    assert standing("without_masks", CPU).refused == "transformers knows no masks for it"


def test_the_command_takes_what_is_served_and_says_what_is_not() -> None:
    """A function that takes the masks of FlashAttention stands for it on a CPU."""
    register_attention()
    asked = ["verify", "--family", "llava", "--method", "vtw,k=1", "--attention"]
    done = CliRunner().invoke(app, [*asked, f"sdpa,{FLASH}"])
    assert done.exit_code == 0, done.output
    assert "2 of 2 agree with masked attention" in done.output
    for name, message in (
        ("flex_attention", "attn_implementation='flex_attention' is not served: flex_attention masks cannot be cut."),
        ("flash_attention_3", "attn_implementation='flash_attention_3' cannot run here: it needs a GPU"),
        ("spda", "attn_implementation='spda' is unknown; did you mean 'sdpa'?"),
    ):
        refused = CliRunner().invoke(app, [*asked, name])
        assert refused.exit_code != 0
        assert message in " ".join(refused.output.split())
