"""Arguments are found by what they are; what cannot be found is refused, with the installed versions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from tests.support.families import make_model
from tests.support.oracle import FLASH, register_attention
from vtw_eval import VTW, Baseline, versions
from vtw_eval.anatomy import UnsupportedModelError, find_anatomy
from vtw_eval.engine.cache import check_cache
from vtw_eval.engine.calls import (
    by_name,
    cache_name,
    cache_of,
    cache_of_output,
    check_embeddings,
    check_layer_call,
    is_checkpointing,
    with_cache,
    without_cache,
)
from vtw_eval.engine.layout import Layout, Prompt, Reduction
from vtw_eval.engine.masks import check_mask, check_width, mask_kind
from vtw_eval.methods.vtw.search import search_layer
from vtw_eval.versions import UpstreamChangedError, blame, installed


class Old(nn.Module):
    def forward(self, hidden_states: Tensor, attention_mask: Any = None, past_key_values: Any = None) -> None: ...


class New(nn.Module):
    def forward(self, hidden_states: Tensor, attention_mask: Any = None, cache: Any = None, **kwargs: Any) -> None: ...


class Blind(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> None: ...


def test_positional_arguments_get_their_names() -> None:
    assert by_name(Old(), (1, 2), {"past_key_values": 3}) == {
        "hidden_states": 1,
        "attention_mask": 2,
        "past_key_values": 3,
    }
    assert by_name(Blind(), (), {"a": 1}) == {"a": 1}
    with pytest.raises(UpstreamChangedError, match="positional arguments that its forward does not name"):
        by_name(Blind(), (1,), {})


@pytest.mark.parametrize("name", ["cache", "past_key_values", "kv_store"])
def test_a_cache_is_found_whatever_its_name(name: str) -> None:
    cache = DynamicCache()
    arguments = {"attention_mask": None, name: cache, "use_cache": True}
    assert cache_name(arguments) == name
    assert cache_of(arguments) is cache
    assert without_cache(arguments) == {"attention_mask": None}
    assert cache_of({**arguments, "again": cache}) is cache
    with pytest.raises(UpstreamChangedError, match="several KV caches"):
        cache_of({**arguments, "other": DynamicCache()})


def test_what_is_no_cache_is_refused_under_its_name() -> None:
    assert cache_of({"cache": None, "past_key_values": None}) is None
    for name in ("cache", "past_key_values", "past_key_value"):
        with pytest.raises(TypeError, match="KV cache of type tuple"):
            cache_of({name: ((1, 2),)})


def test_a_cache_is_passed_under_the_name_that_is_known() -> None:
    first, second = DynamicCache(), DynamicCache()
    assert with_cache(Old(), {"use_cache": True}, first) == {"use_cache": True, "past_key_values": first}
    assert with_cache(New(), {"past_key_values": second}, first) == {"cache": first}
    # a model that swallows what it does not know would run without it
    with pytest.raises(UpstreamChangedError, match="takes its KV cache under none of the names"):
        with_cache(Blind(), {}, first)


def test_the_cache_of_an_output() -> None:
    cache = DynamicCache()
    assert cache_of_output((torch.zeros(1), cache)) is cache
    assert cache_of_output({"last_hidden_state": torch.zeros(1), "anything": cache}) is cache
    assert cache_of_output((torch.zeros(1),)) is None


@pytest.mark.parametrize(
    ("mask", "past", "queries"),
    [
        (torch.ones(2, 17), 0, 1),  # a decode step that finds no cache
        (torch.ones(2, 1), 16, 1),
        (torch.ones(2, 1, 3, 16), 0, 16),
        ({"full_attention": torch.ones(2, 1, 16, 16), "sliding_attention": torch.ones(2, 1, 2, 16)}, 0, 16),
    ],
)
def test_a_mask_of_another_width_is_refused(mask: Any, past: int, queries: int) -> None:
    with pytest.raises(UpstreamChangedError, match=r"attention mask has \d+ (columns|rows)"):
        check_width(mask, past, queries)
    for right in (None, torch.ones(2, 17), torch.ones(2, 1, 1, 17), {"full_attention": None}):
        check_width(right, 16, 1)


@pytest.mark.parametrize(
    ("mask", "kind"),
    [
        (torch.ones(2, 1, 5, 5, dtype=torch.int8), "boolean"),
        (torch.ones(2, 1, 5, 5, dtype=torch.long), "additive"),
        (torch.ones(2, 5, dtype=torch.bool), "boolean"),
        (torch.ones(2, 1, 5, 5, dtype=torch.bool), "validity"),
        (torch.ones(2, 5), "validity"),
        (torch.ones(3, 1, 5, 5, dtype=torch.bool), "boolean"),
        (torch.ones(2, 1, 4, 5, dtype=torch.bool), "boolean"),
        ("a block mask", "boolean"),
    ],
)
def test_a_mask_that_cannot_be_cut_is_refused(mask: Any, kind: Any) -> None:
    with pytest.raises(UpstreamChangedError, match=r"attention mask .* that is not the"):
        check_mask(mask, kind, 2, 5)
    check_mask(torch.ones(1, 1, 5, 5, dtype=torch.bool), "boolean", 2, 5)
    check_mask(torch.zeros(2, 1, 5, 5), "boolean", 2, 5)
    check_mask(torch.zeros(2, 1, 5, 9), "additive", 2, 5)
    check_mask(torch.ones(2, 5, dtype=torch.long), "validity", 2, 5)


def test_masks_of_an_unknown_implementation_are_refused() -> None:
    for implementation in ("brand_new", None):
        with pytest.raises(ValueError, match=r"masks of attn_implementation=.* are unknown"):
            mask_kind(implementation)
    model = make_model("llava", attn="sdpa")
    model.config.text_config._attn_implementation = "brand_new"
    with pytest.raises(ValueError, match="brand_new"), VTW(k=2)(model):
        pass
    with Baseline()(model):  # cuts nothing
        pass


def test_a_layer_needs_its_mask_and_positions_by_name() -> None:
    check_layer_call(3, {"attention_mask": None, "position_ids": None})
    check_layer_call(3, {"attention_mask": None, "position_embeddings": None})
    for arguments in ({"position_ids": None}, {"attention_mask": None, "rotary": None}, {}):
        with pytest.raises(UpstreamChangedError, match="decoder layer 3 is called with"):
            check_layer_call(3, arguments)


def test_position_embeddings_of_another_layout_are_refused() -> None:
    right = torch.zeros(2, 5, 8)
    check_embeddings((right, right), 2, 5)
    check_embeddings((right[:1], right[:1]), 2, 5)
    check_embeddings((right[None].expand(3, -1, -1, -1),) * 2, 2, 5)  # M-RoPE
    for wrong in (
        right,
        (right.transpose(0, 1),) * 2,
        (right, right, right),
        (right[:, :4],) * 2,
        (right[0],) * 2,
        None,
    ):
        with pytest.raises(UpstreamChangedError, match="position_embeddings"):
            check_embeddings(wrong, 2, 5)


def test_each_layer_holds_what_its_layout_says() -> None:
    prompt = Prompt(torch.ones(1, 5, dtype=torch.bool), torch.zeros(1, 5, dtype=torch.bool), None)
    index = torch.tensor([[0, 3, 4]])
    reduction = Reduction(prompt, [None, Layout(index, torch.ones_like(index, dtype=torch.bool), False)])

    def filled(*lengths: int) -> DynamicCache:
        cache = DynamicCache()
        for layer, length in enumerate(lengths):
            cache.update(torch.zeros(1, 1, length, 2), torch.zeros(1, 1, length, 2), layer)
        return cache

    check_cache(filled(5, 3), reduction, 5)
    check_cache(filled(7, 5), reduction, 7)
    for lengths, message in [
        ((5, 5), "holds 5 tokens of decoder layer 1, which got 3"),
        ((10, 3), "holds 10 tokens of decoder layer 0, which got 5"),
        ((5,), "the KV cache has 1 layers, the decoder 2"),
    ]:
        with pytest.raises(UpstreamChangedError, match=message):
            check_cache(filled(*lengths), reduction, 5)


def test_a_switch_of_another_name_is_no_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llava", attn="sdpa").train()
    decoder = find_anatomy(model).decoder
    assert not is_checkpointing(model, decoder)
    for name in ("is_activation_checkpointing", "is_gradient_checkpointing"):
        monkeypatch.delattr(PreTrainedModel, name, raising=False)
    with pytest.raises(UpstreamChangedError, match="whether they checkpoint activations"):
        is_checkpointing(model, decoder)


@pytest.mark.parametrize("name", ["gemma3", "paligemma"])
def test_flash_attention_without_the_bidirectional_mask_is_refused(name: str) -> None:
    register_attention()
    model = make_model(name, attn=FLASH)
    for method in (VTW(k=2), Baseline()):  # the unchanged model is another one, too
        with (
            pytest.raises(UnsupportedModelError, match=f"{name} under {FLASH} loses the bidirectional mask"),
            method(model),
        ):
            pass
    with pytest.raises(UnsupportedModelError, match="bidirectional"):
        search_layer(model, [])


def test_an_upstream_error_names_what_is_installed_and_what_is_tested() -> None:
    error = str(UpstreamChangedError("it has another name.", "transformers", "no-such-package"))
    assert error.startswith("it has another name. No number of this run can be trusted. transformers ")
    assert f"transformers {installed('transformers')} is installed; vtw-eval" in error
    assert f"is tested with transformers{versions.tested('transformers')}." in error
    assert versions.tested("transformers").startswith(">=5")
    assert blame(["no-such-package"]) == "no-such-package is not installed."
