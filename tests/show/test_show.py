"""The page of ``vtw-eval show``, what stands in it, and the command."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from tests.support.families import make_inputs, make_model
from vtw_eval import Method
from vtw_eval.cli import app
from vtw_eval.engine import LayerView, Merge
from vtw_eval.methods import parse_method
from vtw_eval.models.family import content_of
from vtw_eval.models.runner import Request, Runner
from vtw_eval.report.render.patches import COLOURS, drawn, overlay, sheet
from vtw_eval.shapes.data import held_out
from vtw_eval.shapes.questions import prompt
from vtw_eval.show import Scene, page, show, steps
from vtw_eval.show.answers import first_difference

METHODS = ["vtw,k=2", "fastv,k=2,r=0.75", "tome,k=4,r=0.5", "rand,k=3"]


@pytest.fixture(scope="module")
def runner() -> Runner:
    arguments = {"pretrained": "shapes", "method": "baseline", "verify": False}
    return Runner("llava_vtw", arguments, simple=False, device=torch.device("cpu"), log=lambda line: None)


@pytest.fixture(scope="module")
def asked() -> tuple[Image.Image, str]:
    sample = held_out("open_count", 2)[1]
    return Image.fromarray(sample.image), prompt(sample.question)


@pytest.fixture(scope="module")
def scene(runner: Runner, asked: tuple[Image.Image, str]) -> Scene:
    image, question = asked
    messages = [{"role": "user", "content": content_of(question, [image])}]
    methods = [parse_method(spec) for spec in METHODS]
    return show(runner, question, lambda family: family.chat_prompt(messages), methods, {"max_new_tokens": 8})


# --- what is kept


def test_a_step_for_each_change_with_the_masks_of_the_layers() -> None:
    model = make_model("llava", attn="sdpa")
    inputs = make_inputs("llava", model, [["t3", "i", "t4"], ["t2", "i", "i", "t1"]])
    vision = (inputs["input_ids"] == model.config.image_token_id) & inputs["attention_mask"].bool()
    with parse_method("vtw,k=3")(model) as trace, torch.no_grad():
        model(**inputs)
    for row in range(2):
        before, after = steps(trace, row)
        assert (before.layers, after.layers) == ("layers 0 to 2", "layer 3")
        assert torch.equal(before.kept, inputs["attention_mask"][row].bool())
        assert torch.equal(after.kept, inputs["attention_mask"][row].bool() & ~vision[row])
        assert not before.groups and not after.groups
        assert torch.equal(trace.kept(2)[row], before.kept) and torch.equal(trace.kept(3)[row], after.kept)


@dataclass(frozen=True, kw_only=True)
class Pairs(Method):
    """Merge the vision tokens of a row, before layer 1 each with its right neighbour, before layer 2 all; then drop."""

    key: ClassVar[str] = "pairs"

    def layers(self, num_layers: int) -> Sequence[int]:
        return (1, 2, 3)

    def keep(self, view: LayerView) -> Tensor | Merge:
        if view.layer == 3:
            return ~view.vision
        keep, into = view.valid.clone(), torch.arange(view.index.shape[1]).repeat(view.rows, 1)
        for row in range(view.rows):
            places = view.vision[row].nonzero()[:, 0]
            target = places[0::2].repeat_interleave(2) if view.layer == 1 else places[:1].expand(len(places))
            into[row, places] = target
            keep[row, places] = False
            keep[row, target] = True
        return Merge(keep, view.states if view.states.shape[2] else torch.zeros(*keep.shape, 0), into=into)


def test_into_which_token_others_were_merged_is_told_over_layers() -> None:
    model = make_model("llava", attn="sdpa")
    inputs = make_inputs("llava", model, [["t3", "i", "t4"], ["t2", "i", "i", "t1"]])
    with Pairs()(model) as trace, torch.no_grad():
        model(**inputs)
    for row in range(2):
        vision = [i for i, one in enumerate(inputs["input_ids"][row].tolist()) if one == model.config.image_token_id]
        whole, halves, one, none = steps(trace, row)
        assert whole.groups == []
        assert [group.nonzero()[:, 0].tolist() for group in halves.groups] == [
            vision[i : i + 2] for i in range(0, len(vision), 2)
        ]
        assert [group.nonzero()[:, 0].tolist() for group in one.groups] == [vision]
        assert none.groups == [] and none.into[vision].tolist() == [-1] * len(vision)
        for step in (whole, halves, one, none):
            assert torch.equal(step.into == torch.arange(len(step.into)), step.kept)
            assert torch.equal(step.kept, trace.kept(step.first)[row])


@pytest.mark.parametrize("spec", ["tome,k=1,r=0.6", "pact,k1=2,r=0.25,merged=0.5", "downsample,r=0.5", "pool"])
def test_methods_that_merge_tell_the_groups(spec: str) -> None:
    model = make_model("llava", attn="sdpa")
    inputs = make_inputs("llava", model, [["t3", "i", "t4"], ["t2", "i", "i", "t1"]])
    with parse_method(spec)(model) as trace, torch.no_grad():
        model(**inputs)
    assert trace.reduction is not None
    for row in range(2):
        last = steps(trace, row)[-1]
        layout = trace.reduction.layouts[-1]
        assert layout is not None and last.groups
        assert torch.equal((last.into == torch.arange(len(last.into))), last.kept)
        if layout.size is None:  # nothing is dropped: all vision tokens are in a group or alone
            vision = trace.reduction.prompt.vision[row]
            assert bool((last.into[vision] >= 0).all())
        else:
            for slot in layout.valid[row].nonzero()[:, 0].tolist():
                members = int((last.into == layout.index[row, slot]).sum())
                assert members == int(layout.size[row, slot])


# --- drawings


def test_what_is_gone_is_covered_and_what_is_kept_is_not() -> None:
    pixels = np.full((8, 12, 3), 200, dtype=np.uint8)
    kept = torch.tensor([[1.0, 0.0, torch.nan], [0.5, 1.0, 1.0]])
    colour = torch.tensor([[-1, 0, 0], [0, -1, 3]])
    over = overlay(kept, colour, 8, 12)
    same = (drawn(pixels, over) == pixels).all(axis=-1)
    expected = np.zeros((8, 12), dtype=bool)
    expected[:4, :4] = expected[4:, 4:8] = True
    np.testing.assert_array_equal(same, expected)
    assert over[5:, 0:3, 3].max() < over[0, 5:, 3].min()  # half of a patch is half covered
    assert {tuple(one) for one in over[4:, 8:, :3].reshape(-1, 3).tolist()} == {COLOURS[3]}


def test_a_sheet_holds_all_pictures() -> None:
    parts = [np.full((10, 20, 3), value, dtype=np.uint8) for value in (10, 20, 30, 40, 50)]
    whole = sheet(parts, least=20, gap=2)
    assert whole.shape == (2 * 20 + 2, 4 * 40 + 6, 3)
    assert [int(whole[5, x, 0]) for x in (5, 47, 89, 131)] == [10, 20, 30, 40]
    assert int(whole[30, 5, 0]) == 50 and (whole[25:, 50:] == 255).all()


# --- answers


@pytest.mark.parametrize(
    ("before", "after", "place"),
    [
        ("a red ball", "a red  ball", None),
        ("a red ball", "a blue ball", 1),
        ("a red ball", "a red", 2),
        ("", "a", 0),
    ],
)
def test_from_which_word_on_answers_differ(before: str, after: str, place: int | None) -> None:
    assert first_difference(before, after) == place


def test_answers_and_costs_are_those_of_an_evaluation(
    runner: Runner, scene: Scene, asked: tuple[Image.Image, str]
) -> None:
    image, question = asked
    messages = [{"role": "user", "content": content_of(question, [image])}]
    assert [shown.method.split(",")[0] for shown in scene.shown] == ["baseline", "vtw", "fastv", "tome", "rand"]
    for shown in scene.shown:
        runner.exchange(parse_method(shown.method))
        request = Request("it", 0, {"max_new_tokens": 8}, lambda family: family.chat_prompt(messages))
        [answer] = runner.answer([request], progress=False)
        assert shown.answer == answer.text.strip()
        assert shown.tokens_per_layer == answer.costs.tokens_per_layer
        assert shown.flops == answer.costs.prefill_flops
        assert [step.first for step in shown.steps] == [
            i for i, n in enumerate(shown.tokens_per_layer) if i == 0 or n != shown.tokens_per_layer[i - 1]
        ]
    assert scene.vision == 64 and scene.sight.panels[0].pixels.shape == (64, 64, 3)
    np.testing.assert_allclose(scene.sight.panels[0].pixels, np.asarray(image), atol=1)


# --- the page


class Reader(HTMLParser):
    """Collects tags with their attributes, text, and names; fails on tags that are not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "link", "br", "img", "wbr", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    return reader


def test_the_page_is_one_file_with_all_methods_and_answers(scene: Scene) -> None:
    html = page([scene, scene], "Two <scenes>")
    reader = read(html)
    links = [value for _, name, value in reader.attributes if name in ("href", "src", "xlink:href")]
    assert links and all(link.startswith(("data:", "#")) for link in links)
    assert "http:" not in html and "https:" not in html
    names = [value for _, name, value in reader.attributes if name == "id"]
    assert len(names) == len(set(names))
    assert {link[1:] for link in links if link.startswith("#")} <= set(names)
    assert sum(tag == "image" and name == "id" for tag, name, _ in reader.attributes) == 1  # the picture, once
    text = re.sub(r"\s+", " ", "".join(reader.words))
    assert "Two <scenes>" in text
    for shown in scene.shown:
        assert shown.method in text
        assert shown.answer in text
    assert "layers 2 to 9: 0 of 64 vision tokens" in text and "layers 2 to 9: 16 of 64 vision tokens" in text
    assert re.search(r"; \d+ stand for \d+", text)
    labels = [value for _, name, value in reader.attributes if name == "aria-label"]
    assert any("16 of 64 vision tokens" in label for label in labels)


# --- the command


def command(*words: str) -> Any:
    return CliRunner().invoke(app, ["show", *words])


def test_the_command_writes_a_page_and_pictures(tmp_path: Path, asked: tuple[Image.Image, str]) -> None:
    image, question = asked
    image.save(tmp_path / "it.png")
    done = command(
        *("--model-args", "pretrained=shapes", "--image", str(tmp_path / "it.png"), "--question", question),
        *("--method", "vtw,k=2", "--method", "fastv,k=2,r=0.75", "--no-verify"),
        *("-o", str(tmp_path / "page.html"), "--pictures", str(tmp_path / "pictures")),
    )
    assert done.exit_code == 0, done.output
    read((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert sorted(file.name for file in (tmp_path / "pictures").iterdir()) == [
        "baseline-layer0.png",
        "fastv_k=2_r=0.75_seed=0-layer2.png",
        "vtw_k=2_position=keep-layer2.png",
    ]
    whole = np.asarray(Image.open(tmp_path / "pictures" / "baseline-layer0.png"))
    some = np.asarray(Image.open(tmp_path / "pictures" / "fastv_k=2_r=0.75_seed=0-layer2.png"))
    same = (whole == some).all(axis=-1)
    side = whole.shape[0] // 8
    lit = [same[y * side : y * side + side, x * side : x * side + side].all() for y in range(8) for x in range(8)]
    assert sum(lit) == 16 and same.sum() == 16 * side**2
    assert "baseline:" in done.output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model-args", "pretrained=shapes"], "give --image or --video, and --question; or --task"),
        (["--question", "What?"], "must name the checkpoint"),
        (["--model-args", "pretrained=shapes,method=vtw"], "use --method"),
        (["--model-args", "pretrained=shapes", "--doc", "1"], "give --task"),
        (["--model-args", "pretrained=shapes", "--task", "mme", "--question", "What?"], "brings its own"),
        (["--model-args", "pretrained=shapes", "--method", "vwt"], "vwt"),
    ],
)
def test_a_command_that_cannot_be_carried_out_says_why(words: list[str], told: str, tmp_path: Path) -> None:
    done = command(*words, "-o", str(tmp_path / "page.html"))
    assert done.exit_code == 2 and told in done.output, done.output
    assert not (tmp_path / "page.html").exists()


def test_a_document_of_a_task_is_shown(run: Callable[..., Any], script: str, tmp_path: Path) -> None:
    done = run(
        *(f"{script}/vtw-eval", "show", "--model-args", "pretrained=shapes", "--task", "shapes_vqa", "--doc", "3"),
        *("--method", "vtw,k=2", "--no-verify", "-o", str(tmp_path / "page.html")),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "doc_id 3" in done.stdout and "vtw,k=2,position=keep: " in done.stdout
    read((tmp_path / "page.html").read_text(encoding="utf-8"))
