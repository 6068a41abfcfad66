"""Examples of changed answers: what was kept is drawn from samples alone, and a command shows the rest."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from tests.report.made import make_store
from vtw_eval.checkpoints import EMBEDDED
from vtw_eval.media import BLANK
from vtw_eval.models.adapters import ADAPTERS
from vtw_eval.models.family import content_of
from vtw_eval.models.loading import load
from vtw_eval.models.options import parse_options
from vtw_eval.record.cell import CellSpec, Sample
from vtw_eval.record.costs import SampleCosts
from vtw_eval.record.kept import pack
from vtw_eval.report.examples import show_command
from vtw_eval.report.make import ReportRequest, make_report
from vtw_eval.report.pictures import picture_of
from vtw_eval.shapes.data import mme_rows, vqa_rows
from vtw_eval.show import look

SPEC = CellSpec(model="m", adapter="llava_vtw", pretrained="shapes", method="fastv,k=2", task="shapes_vqa")


def pixels_of(png: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def digest(png: bytes) -> str:
    return hashlib.sha256(png + b"\0").hexdigest()[:16]


def costs_of(layers: list[set[tuple[int, int]]], side: int = 8, **changes: object) -> SampleCosts:
    """Costs of a method that leaves these tokens, by row and column, in layers 0, 1, ..."""
    different = [s for i, s in enumerate(layers) if s and len(s) < side**2 and (i == 0 or s != layers[i - 1])]
    outlived = [sum((row, column) in s for s in different) for row in range(side) for column in range(side)]
    counts = tuple(len(s) for s in layers)
    fields = {
        "input_tokens": side**2,
        "output_tokens": 1,
        "vision_tokens": side**2,
        "tokens_per_layer": counts,
        "vision_per_layer": counts,
        "kept": pack(outlived, len(different)),
        "prefill_flops": 1.0,
        "method": "fastv,k=2,r=0.75,seed=0",
        **changes,
    }
    return SampleCosts.model_validate(fields)


def sample_of(number: int, costs: SampleCosts | None, **changes: object) -> Sample:
    media = digest(vqa_rows()[number]["image"]["bytes"])
    fields = {"doc_id": str(number), "group": media, "media": media, "target": "t", "answer": "a", "scores": {}}
    return Sample.model_validate({**fields, "costs": costs, **changes})


def box(rows: range, columns: range) -> set[tuple[int, int]]:
    return {(row, column) for row in rows for column in columns}


ALL, CORNER = box(range(8), range(8)), box(range(4), range(4, 8))


def test_what_was_kept_is_drawn_where_it_is() -> None:
    picture = picture_of(SPEC, sample_of(5, costs_of([ALL, ALL, CORNER, CORNER, set()])))
    assert picture is not None and [one.words for one in picture.kept] == [
        "layers 2 to 3: 16 of 64",
        "layer 4: none of 64",
    ]
    assert picture.kept[1].png is None and picture.kept[0].png is not None
    whole, cut = pixels_of(picture.png).astype(int), pixels_of(picture.kept[0].png).astype(int)
    half = len(cut) // 2
    inside = np.zeros(cut.shape[:2], dtype=bool)
    inside[:half, half:] = True
    assert np.abs(cut - whole)[inside].mean() < 8  # the upper right quarter, in fewer colours
    assert (cut != whole).any(axis=2)[~inside].mean() > 0.98  # the rest lies in the dark
    assert cut[~inside].mean() < 0.6 * whole[~inside].mean()


def test_few_of_many_changes_are_drawn_the_first_and_the_last_ones() -> None:
    layers = [box(range(8 - layer), range(8)) for layer in range(8)]
    picture = picture_of(SPEC, sample_of(0, costs_of(layers)))
    assert picture is not None
    assert [one.words for one in picture.kept] == ["layer 1: 56 of 64", "layer 6: 16 of 64", "layer 7: 8 of 64"]


@pytest.mark.parametrize(
    ("spec", "costs"),
    [
        (SPEC, None),
        (SPEC, costs_of([ALL, CORNER], kept="")),  # of an earlier version
        (SPEC, costs_of([ALL, CORNER], media=(BLANK,))),
        (SPEC.model_copy(update={"pretrained": "llava-hf/llava-1.5-7b-hf"}), costs_of([ALL, CORNER])),
        (SPEC, costs_of([ALL, ALL])),
    ],
)
def test_nothing_is_drawn_where_nobody_knows_or_nothing_left(spec: CellSpec, costs: SampleCosts | None) -> None:
    picture = picture_of(spec, sample_of(0, costs))
    assert picture is not None and picture.kept == ()


def test_a_picture_that_does_not_fit_its_sample_is_not_shown() -> None:
    costs = costs_of([ALL, CORNER])
    assert picture_of(SPEC, sample_of(0, costs, media="0123456789abcdef")) is None
    assert picture_of(SPEC, sample_of(0, costs, media="")) is not None  # of an earlier version, by its group
    row, spec = mme_rows()[2], SPEC.model_copy(update={"task": "shapes_mme"})
    named = {"group": f"{row['category']}/{row['question_id']}", "media": digest(row["image"]["bytes"])}
    assert picture_of(spec, sample_of(2, costs, **named)) is not None
    assert picture_of(spec, sample_of(2, costs, **{**named, "media": "0123456789abcdef"})) is None


@pytest.mark.parametrize("name", EMBEDDED)
def test_tokens_of_embedded_checkpoints_cover_a_picture_row_by_row(name: str) -> None:
    """By the model's own packing; where an image has tokens that do not, their number is no square."""
    model_type = json.loads((EMBEDDED[name] / "config.json").read_text())["model_type"]
    adapter = next(key for key, one in ADAPTERS.items() if one.family_of(model_type) is not None)
    options, _ = parse_options(adapter, ADAPTERS[adapter].options, {"pretrained": name})
    family = load(adapter, options, simple=False, device=torch.device("cpu"))
    shown = Image.open(io.BytesIO(vqa_rows()[0]["image"]["bytes"])).convert("RGB").resize((128, 128))
    messages = [{"role": "user", "content": content_of("What is it?", [shown])}]
    sight = look(family, family.encode([family.chat_prompt(messages)]))
    count = int(sight.tokens.sum())
    side = round(count**0.5)
    if side**2 != count:  # tiles, class tokens
        half = count // 2
        told = {"vision_tokens": count, "vision_per_layer": (half,), "kept": pack([1] * half + [0] * (count - half), 1)}
        picture = picture_of(SPEC.model_copy(update={"pretrained": name}), sample_of(0, costs_of([ALL], **told)))
        assert picture is not None and picture.kept == ()
        return
    [panel] = sight.panels
    [shares] = sight.shares(torch.eye(len(sight.tokens))[sight.tokens] > 0)
    assert torch.equal(shares, torch.eye(count).reshape(count, side, side))
    seen = np.asarray(Image.fromarray(panel.pixels).resize((128, 128)), dtype=float)
    assert np.abs(seen - np.asarray(shown, dtype=float)).mean() < 6


def test_a_report_holds_pictures_and_commands(tmp_path: Path) -> None:
    store = make_store(tmp_path, ["baseline", "fastv,k=2"], tasks=["shapes_vqa"], wrong={"fastv,k=2": 1.0}, count=4)
    before = len(make_report(ReportRequest(folder=tmp_path, form="html", plots=False)).text)
    for cell in store.cells():
        costs = costs_of([ALL, ALL, ALL if cell.spec.method == "baseline" else CORNER])
        rows = []
        for number, sample in enumerate(store.samples(cell)):
            told = {"answer": sample.answer, "target": sample.target, "scores": sample.scores}
            rows.append(sample_of(number, costs, **told))
        store.save(cell, rows)
    page = make_report(ReportRequest(folder=tmp_path, form="html", plots=False)).text
    whole, kept = (base64.b64decode(png) for png in re.findall(r'src="data:image/png;base64,([^"]*)"', page))
    assert pixels_of(whole).shape == (64, 64, 3) and pixels_of(kept).shape == (64, 64, 3)
    assert "layer 2: 16 of 64" in page and "what is dark has none of its own" in page
    assert len(page) - before < 22_000  # most of it the picture itself
    text = make_report(ReportRequest(folder=tmp_path, plots=False)).text
    assert "data:image" not in text and "what is dark" not in text
    command = "vtw-eval show --model llava_vtw --model-args pretrained=shapes --task shapes_vqa --doc 0 --method fastv"
    assert command in page and "vtw-eval show" not in text


def test_the_command_is_that_of_the_cell() -> None:
    spec = SPEC.model_copy(
        update={"pretrained": "my models/llava", "model_args": {"dtype": "float32", "max_pixels": 9}}
    )
    words = shlex.split(show_command(spec, sample_of(3, costs_of([ALL, CORNER]))))
    assert words == [
        *("vtw-eval", "show", "--model", "llava_vtw"),
        *("--model-args", "pretrained=my models/llava,dtype=float32,max_pixels=9"),
        *("--task", "shapes_vqa", "--doc", "3", "--method", "fastv,k=2,r=0.75,seed=0", "-o", "page.html"),
    ]
    assert "--method fastv,k=2 " in show_command(SPEC, sample_of(3, None))
    assert show_command(SPEC.model_copy(update={"harness": "vlmevalkit"}), sample_of(3, None)) == ""
    assert show_command(SPEC.model_copy(update={"method": "vtw,k=search"}), sample_of(3, None)) == ""
    assert show_command(SPEC, sample_of(3, None, doc_id="a/b")) == ""
