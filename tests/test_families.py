"""Which families are served: the decoders that are said to be tested, the table of all, and what is new."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from tests.families_table import rows
from tests.support.families import DECODERS
from vtw_eval import VTW
from vtw_eval.anatomy import UnsupportedModelError, find_anatomy
from vtw_eval.families import BIDIRECTIONAL, DECODER_TESTED, REFUSED, TESTED, standing
from vtw_eval.models.llava import Llava, LlavaOptions
from vtw_eval.models.loading import load
from vtw_eval.verify.check import check_method, make_subject
from vtw_eval.verify.tiny import family_config, shrink

TABLE = Path(__file__).parent.parent / "results" / "families.md"


@pytest.mark.parametrize("family", sorted(DECODER_TESTED - set(DECODERS)))
def test_decoders_equal_masked_attention(family: str) -> None:
    subject = make_subject(shrink(family_config(family)), "eager", torch.float32, torch.device("cpu"))
    k = find_anatomy(subject.model).num_layers // 2
    assert "masking" in check_method(subject, VTW(k=k).bind(find_anatomy(subject.model)))


def test_no_family_stands_twice() -> None:
    assert not TESTED & DECODER_TESTED
    assert not (TESTED | DECODER_TESTED) & set(REFUSED)
    assert BIDIRECTIONAL <= TESTED | DECODER_TESTED


def test_each_family_of_transformers_is_in_the_table() -> None:
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    listed = {cells[1].strip(): [c.strip() for c in cells[1:-1]] for x in lines if len(cells := x.split("|")) == 6}
    known = TESTED | DECODER_TESTED | set(REFUSED)
    assert known - {"internvl_chat"} <= set(listed)
    if f"transformers {transformers.__version__}." in TABLE.read_text(encoding="utf-8"):
        assert [row for row in listed.values() if row[0] in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES] == rows()


def test_a_new_family_is_untested() -> None:
    assert standing("brand_new") == "untested"
    assert rows({"brand_new": "BrandNewModel", "llava": "LlavaForConditionalGeneration"}) == [
        ["brand_new", "BrandNewModel", "refused unless `allow_untested=True`", "no test compares it"],
        ["llava", "LlavaForConditionalGeneration", "served", "compared with masked attention, vision tower and all"],
    ]


def test_a_family_without_vision_tokens_is_refused_with_the_reason() -> None:
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(transformers.AutoConfig.for_model("git"))
    with pytest.raises(UnsupportedModelError, match="git is not supported: its image features stand in front"):
        find_anatomy(model)


def test_an_adapter_opens_no_decoder_whose_costs_it_would_get_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_processor(*args: Any, **more: Any) -> None:
        raise LookupError("the processor is next")

    def loaded(family: str) -> None:
        config = shrink(family_config(family))
        with torch.device("meta"):
            model = transformers.AutoModelForImageTextToText.from_config(config)
        monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", lambda *args, **more: model)
        monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", no_processor)
        monkeypatch.setattr(Llava, "model_types", frozenset({family}))
        config.save_pretrained(tmp_path)
        options = LlavaOptions(pretrained=str(tmp_path))
        load("llava_vtw", options, simple=True, device=torch.device("meta"))

    with pytest.raises(ValueError, match="without keys of their own"):
        loaded("lfm2_vl")
    with pytest.raises(LookupError, match="the processor"):  # it goes on
        loaded("llava")
    monkeypatch.undo()
    shrink(family_config("lfm2_vl")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="No adapter opens it: use methods in Python"):
        load("llava_vtw", LlavaOptions(pretrained=str(tmp_path)), simple=True, device=torch.device("meta"))
