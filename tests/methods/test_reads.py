"""A method gets what it declares to read, nothing else, and pays for what it has read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from tests.methods.examples import EXAMPLES
from tests.support.families import make_inputs, make_model
from tests.support.gates import fitted
from vtw_eval import VTW, Composite, FastV, Method, Scorer, ToMe
from vtw_eval.anatomy import find_anatomy
from vtw_eval.cost import PRESETS, Geometry
from vtw_eval.cost.choice import choice_flops
from vtw_eval.cost.measure.counted import counted_costs
from vtw_eval.cost.measure.flops import torch_flops
from vtw_eval.engine import LayerView, Reads

READINGS: dict[Reads, Callable[[LayerView], Any]] = {
    Reads.IDS: lambda view: view.generator(0, 0),
    Reads.HIDDEN: lambda view: view.hidden,
    Reads.KEYS: lambda view: view.keys(),
    Reads.ATTENTION: lambda view: view.attention(view.layer),
    Reads.ATTENTION_BEFORE: lambda view: view.attention(view.layer - 1),
    Reads.EMBEDDINGS: lambda view: view.embeddings,
    Reads.NORMED: lambda view: view.normed,
    Reads.KEYS_BEFORE: lambda view: view.keys_before(),
    Reads.UNROTATED_BEFORE: lambda view: view.unrotated_attention(view.vision),
    Reads.MEAN_QUERY: lambda view: view.mean_query_attention(~view.instruction, view.vision),
    Reads.ROTATED_KEYS: lambda view: view.rotated_keys(),
    Reads.VALUES_BEFORE: lambda view: view.values_before(),
    Reads.ROTATION: lambda view: view.rotation,
    Reads.TOWER: lambda view: view.tower.received(),
}
EVERYTHING = ~Reads.ROLES
FREE = (Reads.IDS, Reads.HIDDEN, Reads.EMBEDDINGS, Reads.NORMED, Reads.ROTATION)
"""No matrix product is needed for these."""


def reader(declared: Reads, read: Callable[[LayerView], Any], times: int = 1) -> Method:
    """Return a method that reads something some times at layers 1 and 3, and keeps everything."""

    @dataclass(frozen=True, kw_only=True)
    class Reader(Method):
        key: ClassVar[str] = "reader"
        reads = declared

        def layers(self, num_layers: int) -> Sequence[int]:
            return (1, 3)

        def keep(self, view: LayerView) -> Tensor:
            for _ in range(times):
                read(view)
            return view.valid

    return Reader()


@torch.no_grad()
def run(method: Method) -> Any:
    model = make_model("llava", attn="sdpa")
    with method(model) as trace:
        model(**make_inputs("llava", model, [["t3", "i", "t4"], ["t2", "i", "i", "t1"]]))
    return trace


@pytest.mark.parametrize("what", READINGS, ids=str)
def test_what_is_not_declared_is_not_read(what: Reads) -> None:
    run(reader(what, READINGS[what]))
    with pytest.raises(ValueError, match=rf"^reader uses view\..* does not declare it: write reads = {what}\b"):
        run(reader(EVERYTHING & ~what, READINGS[what]))
    with pytest.raises(ValueError, match=rf"Reads.{what.name}\b"):
        run(reader(Reads.ROLES, READINGS[what]))


@pytest.mark.parametrize("what", READINGS, ids=str)
def test_a_part_of_a_composition_reads_what_it_declares_itself(what: Reads) -> None:
    run(Composite(parts=(VTW(k=4), reader(what, READINGS[what]))))
    with pytest.raises(ValueError, match=r"^reader uses"):
        run(Composite(parts=(FastV(k=1), reader(EVERYTHING & ~what, READINGS[what]))))


@pytest.mark.parametrize("offset", [-2, 1])
def test_attention_of_other_layers_is_no_reading(offset: int) -> None:
    with pytest.raises(ValueError, match=r"only that of layers \d and \d can be read there"):
        run(reader(EVERYTHING, lambda view: view.attention(view.layer + offset)))


@pytest.mark.parametrize("what", [Reads.KEYS_BEFORE, Reads.UNROTATED_BEFORE, Reads.VALUES_BEFORE], ids=str)
def test_there_is_no_layer_before_the_first(what: Reads) -> None:
    class Early(type(reader(what, READINGS[what]))):  # type: ignore[misc]
        def layers(self, num_layers: int) -> Sequence[int]:
            return (0,)

    with pytest.raises(ValueError, match=r"uses view\..* before layer 0: there is no layer before"):
        run(Early())


@pytest.mark.parametrize("name", ["llava_gqa", "qwen2_vl", "qwen3_vl", "glm4v", "aya_vision", "paligemma"])
@torch.no_grad()
def test_attention_without_rotation_is_that_of_a_prompt_at_one_place(name: str) -> None:
    """With norms of queries and keys, halves that are rotated, other orders of what is rotated together."""
    model, seen = make_model(name, attn="eager"), []
    inputs = make_inputs(name, model, [["t3", "i", "t2", "i", "t4"]])

    def note(view: LayerView) -> None:
        seen.append((view.unrotated_attention(view.vision), view.vision))

    with reader(Reads.UNROTATED_BEFORE, note)(model):
        model(**inputs)
    (row, vision), *_ = seen  # before layer 1
    axes = (3,) if "mrope_section" in str(model.config) else ()
    still = torch.zeros(*axes, *vision.shape, dtype=torch.long)
    weights = model(**inputs, position_ids=still, output_attentions=True).attentions[0][:, :, -1] * vision
    expected = (weights / weights.sum(dim=-1, keepdim=True)).mean(dim=1)
    torch.testing.assert_close(row, expected.to(row), atol=1e-6, rtol=1e-5)
    rotated = model(**inputs, output_attentions=True).attentions[0][:, :, -1] * vision
    assert ((rotated / rotated.sum(dim=-1, keepdim=True)).mean(dim=1) - row).abs().max() > 1e-4


@torch.no_grad()
def test_the_norm_and_the_rotation_are_not_read_where_they_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llava", attn="sdpa")
    anatomy = find_anatomy(model)
    monkeypatch.delattr(anatomy.decoder, "norm")
    with pytest.raises(ValueError, match=r"reader reads .* decoder has no \.norm"):
        reader(Reads.NORMED, READINGS[Reads.NORMED])(model).__enter__()
    monkeypatch.setattr(anatomy.layers[2], "forward", lambda hidden_states, attention_mask: hidden_states)
    with pytest.raises(ValueError, match=r"reader reads .* \(position_embeddings\)"):
        reader(Reads.UNROTATED_BEFORE, READINGS[Reads.UNROTATED_BEFORE])(model).__enter__()


def test_keys_are_not_read_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llava", attn="sdpa")
    monkeypatch.delattr(find_anatomy(model).layers[-1].self_attn, "k_proj")
    with pytest.raises(ValueError, match=r"tome,.* reads keys, but .*self_attn\.k_proj"), ToMe()(model):
        pass
    with FastV()(model):
        pass


@pytest.mark.parametrize("times", [0, 1, 2])
@pytest.mark.parametrize("what", READINGS, ids=str)
@torch.no_grad()
def test_what_is_read_is_what_is_charged(what: Reads, times: int) -> None:
    model = make_model("llava_gqa", attn="sdpa")
    inputs = make_inputs("llava_gqa", model, [["t3", "i", "t4"], ["t2", "i", "i", "t1"]])
    method = Composite(parts=(VTW(k=2), reader(what, READINGS[what], times)))
    with method(model) as trace:
        model(**inputs)
        closed = choice_flops(trace, Geometry.from_config(model.config))
        assert sum(closed.values()) == torch_flops(model, {**inputs, "use_cache": False}).method
    assert bool(closed) == (times > 0 and what not in FREE)
    # The second pass, which the counter has run, replaces what the first one has read.
    assert len(trace.looks) == (2 * times if closed else 0)


@pytest.mark.parametrize(
    ("what", "share"),
    [(what, None) for what in READINGS if what not in FREE]
    + [(what, share) for what in (Reads.ATTENTION, Reads.ATTENTION_BEFORE) for share in (3, 1)],
)
def test_a_large_model_is_charged_by_what_is_read_on_a_tiny_one(what: Reads, share: int | None) -> None:
    def read(view: LayerView) -> Tensor:
        if share is None:
            return READINGS[what](view)
        layer = view.layer - (what is Reads.ATTENTION_BEFORE)
        return view.attention(layer, view.index % share == 0)

    method = Composite(parts=(VTW(k=2), reader(what, read)))
    _, counted = counted_costs(PRESETS["llava-1.5-7b"], [method], text=20, vision=40)
    assert counted.read and counted.unexplained == []


def test_methods_that_read_no_layer_are_asked_before_the_first_one_runs() -> None:
    for label, method in EXAMPLES.items():
        model = make_model("llava", attn="sdpa")
        method = fitted(method, model)
        widths: list[int] = []
        for part in getattr(method, "parts", (method,)):
            keep = type(part).keep

            def noted(self: Method, view: LayerView, keep: Any = keep, widths: list[int] = widths) -> Any:
                widths.append(view.states.shape[-1])
                return keep(self, view)

            with pytest.MonkeyPatch.context() as patch, torch.no_grad():
                patch.setattr(type(part), "keep", noted)
                with method(model):
                    model(**make_inputs("llava", model, [["t3", "i", "t4"]]))
        assert (set(widths) <= {0}) == method.reads.before_layers, label


@torch.no_grad()
def test_what_is_independent_of_the_question_keeps_the_same_whatever_it_is() -> None:
    model = make_model("llava", attn="sdpa")
    independent = {
        label: method
        for label, method in EXAMPLES.items()
        if method.question_independent and method.reads == Reads.ROLES  # the rows below show other pixels
    }
    assert {"baseline", "vtw"} <= set(independent)
    assert not {"rand", "random_k", "random_vision", "fastv", "fastv at 0", "cdpruner", "dyvte"} & set(independent)
    for label, method in independent.items():
        kept = []
        for question in ("t3", "t8"):
            inputs = make_inputs("llava", model, [["t5", "i", "i", question]])
            with method(model) as trace:
                model(**inputs)
            vision = trace.reduction.prompt.vision[0]
            kept.append([trace.kept(layer)[0, vision].tolist() for layer in range(4)])
        assert kept[0] == kept[1], label


@dataclass(frozen=True, kw_only=True)
class LongKeys(Scorer):
    """Keep the vision tokens with the longest keys."""

    key: ClassVar[str] = "long_keys"
    reads = Reads.KEYS

    def score(self, view: LayerView) -> Tensor:
        return view.keys().norm(dim=-1)


@torch.no_grad()
def test_a_scorer_is_its_key_its_reads_and_its_score() -> None:
    model = make_model("llava", attn="sdpa")
    inputs = make_inputs("llava", model, [["t3", "i", "t4"], ["t2", "i", "i", "t1"]])
    seen: list[Tensor] = []
    hook = find_anatomy(model).layers[2].self_attn.k_proj.register_forward_hook(lambda _, __, out: seen.append(out))
    model(**inputs)
    hook.remove()
    keys = seen[0].unflatten(-1, (-1, find_anatomy(model).layers[2].self_attn.head_dim)).mean(dim=2)
    with LongKeys(r=0.25)(model) as trace:
        model(**inputs)
    for row in range(2):
        vision = trace.reduction.prompt.vision[row].nonzero().flatten()
        best = keys[row, vision].norm(dim=-1).argsort(descending=True, stable=True)
        assert trace.kept(2)[row, vision].sum() == round(len(vision) * 0.75)
        assert trace.kept(2)[row, vision[best[: round(len(vision) * 0.75)]]].all()
        assert trace.kept(2)[row].sum() == trace.kept(1)[row].sum() - len(vision) + round(len(vision) * 0.75)
    assert str(LongKeys(k=3)) == "long_keys,k=3,r=0.5"
    with pytest.raises(ValueError, match="r=2 is out of range"):
        LongKeys(r=2)
    with pytest.raises(ValueError, match=r"k=9 .* 0\.\.4"):
        LongKeys(k=9).bind(find_anatomy(model))


def test_a_score_of_another_shape_is_refused() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Short(Scorer):
        key: ClassVar[str] = "short"

        def score(self, view: LayerView) -> Tensor:
            return view.vision[0].float()

    with pytest.raises(ValueError, match=r"short: score\(\) gave \(\d+,\) before layer 2; it must be \[rows, tokens\]"):
        run(Short())
