"""What an observer is shown of each layer: the attention that the layer then pays, on every family."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.support.families import DECODERS, FAMILIES, make_inputs
from tests.support.oracle import KINDS, models
from vtw_eval import VTW, Baseline
from vtw_eval.anatomy import find_anatomy
from vtw_eval.engine import Entering, install, probes
from vtw_eval.methods import Method, parse_method
from vtw_eval.methods.shortv import ShortV
from vtw_eval.verify.oracle import masked


def everything(entering: Entering) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Yield row, place, weights ``[heads, tokens]`` and visible tokens of all queries, put back to the prompt."""
    rows, length = entering.prompt.valid.shape
    for chunk in entering.attention(torch.ones_like(entering.valid)):
        assert chunk.weights.shape[2] <= probes._CHUNK
        for row in range(rows):
            for column, place in enumerate(chunk.places[row].tolist()):
                if chunk.chosen[row, column]:
                    weights = chunk.weights.new_zeros(chunk.weights.shape[1], length)
                    weights[:, entering.index[row]] = chunk.weights[row, :, column]
                    seen = torch.zeros(length, dtype=torch.bool)
                    seen[entering.index[row]] = chunk.visible.expand(-1, weights.shape[0], -1, -1)[row, 0, column]
                    yield row, int(entering.index[row, place]), weights, seen


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_all_rows_are_those_of_eager_attention(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_CHUNK", 5)  # several chunks of queries in each prompt
    model, _ = models(name, "sdpa")
    eager, _ = models(name, "eager")
    layers = find_anatomy(model).num_layers
    inputs = make_inputs(name, model, KINDS["mixed"])
    for k in (layers, 2):
        method = Baseline() if k == layers else VTW(k=k)
        with masked(eager, k):
            expected = eager(**inputs, output_attentions=True, use_cache=False).attentions
        count = 0

        def look(entering: Entering, expected: tuple[Tensor, ...] = expected) -> None:
            nonlocal count
            for row, place, weights, seen in everything(entering):
                own = expected[entering.layer][row, :, place].to(weights)
                torch.testing.assert_close(weights, own, atol=1e-6, rtol=1e-5)
                torch.testing.assert_close(weights.sum(dim=-1), torch.ones_like(weights[:, 0]), atol=1e-6, rtol=0)
                assert bool((own[:, seen] > 0).all()) and bool((own[:, ~seen] == 0).all())
                count += 1

        with install(method, model, observer=look) as trace:
            model(**inputs, use_cache=False)
        assert count == int(trace.tokens_per_layer.sum())


@pytest.mark.parametrize(
    "spec", ["baseline", "vtw,k=2", "fastv,k=1,r=0.5", "tome,k=1,r=0.5", "vtw,k=2,position=rearrange"]
)
@torch.no_grad()
def test_looking_on_changes_nothing(spec: str) -> None:
    model, _ = models("llava_onevision", "sdpa")
    inputs = make_inputs("llava_onevision", model, KINDS["mixed"])
    method: Method = parse_method(spec)
    with method(model):
        before = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        logits = model(**inputs).logits
    seen: list[tuple[int, int]] = []

    def look(entering: Entering) -> None:
        list(entering.attention(entering.valid))
        seen.append((entering.layer, int(entering.valid.sum())))

    with install(method, model, observer=look) as trace:
        assert torch.equal(model(**inputs).logits, logits)
        assert seen == list(enumerate(trace.tokens_per_layer.sum(dim=0).tolist()))
        seen.clear()
        assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), before)
        assert [layer for layer, _ in seen] == list(range(find_anatomy(model).num_layers))  # the prompt, once


@torch.no_grad()
def test_what_cannot_be_read_is_refused() -> None:
    model, _ = models("llava", "sdpa")
    method = ShortV(order="2-1", n=1)
    with pytest.raises(ValueError, match="leaves vision tokens as they are"), install(method, model, observer=print):
        pass


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_layers_without_attention_of_their_own_are_refused_and_the_others_read(name: str) -> None:
    model, _ = models(name, "sdpa")
    eager, _ = models(name, "eager")
    inputs = make_inputs(name, model, KINDS["single"])
    found: dict[int, list[tuple[int, Tensor]]] = {}
    refused: list[str] = []

    def look(entering: Entering) -> None:
        try:
            found[entering.layer] = [(place, weights) for _, place, weights, _ in everything(entering)]
        except ValueError as error:
            refused.append(str(error))

    with install(Baseline(), model, observer=look):
        model(**inputs, use_cache=False)
    assert all("cannot be looked into" in each or "keys of another one" in each for each in refused)
    assert len(found) + len(refused) == find_anatomy(model).num_layers and found
    given = [each for each in eager(**inputs, output_attentions=True, use_cache=False).attentions if each is not None]
    own = [found[layer] for layer in sorted(found)]
    if len(given) == len(own) + len(refused):  # layers that share keys tell their weights, too
        given = [given[layer] for layer in sorted(found)]
    assert len(given) == len(own)
    for rows, weights in zip(own, given, strict=True):
        for place, row in rows:
            torch.testing.assert_close(row, weights[0, :, place].to(row), atol=1e-5, rtol=1e-4)
