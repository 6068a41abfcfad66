"""VLMEvalKit asks one question at a time, and those about one image share it all the same: nothing else changes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import pytest

pytest.importorskip("vlmeval")

from tests.support.harness_data import picture, question, write_video
from tests.support.kit_data import accept_any_sum, encoded
from vtw_eval.anatomy import find_tower
from vtw_eval.methods import parse_method
from vtw_eval.model_adapters.vlmeval import registry as vlmeval_registry
from vtw_eval.model_adapters.vlmeval.evaluate import KitResult, evaluate
from vtw_eval.model_adapters.vlmeval.models import (
    InternVLVTW,
    LlavaVTW,
    Qwen2VLVTW,
    VideoLlavaVTW,
    VTWKitModel,
)
from vtw_eval.model_adapters.vlmeval.prompts.base import KitQuestion
from vtw_eval.model_adapters.vlmeval.rows import AHEAD, Known, VideoRows
from vtw_eval.models.failures import DocumentError
from vtw_eval.models.requests import Request
from vtw_eval.record.costs import TimedCosts
from vtw_eval.tasks.kit import register_kit_datasets
from vtw_eval.tasks.tgif.data import TABLE, VIDEOS, dataset_folder

CLASSES: dict[str, tuple[type[VTWKitModel], dict[str, Any]]] = {
    "llava": (LlavaVTW, {}),
    "qwen2_vl": (Qwen2VLVTW, {"min_pixels": 784, "max_pixels": 6272, "max_num_frames": 4, "fps": None}),
    "internvl": (InternVLVTW, {"max_patches": 2}),
    "video_llava": (VideoLlavaVTW, {}),
}
METHODS = ("vtw,k=1", "fastv,k=2", "divprune")
"""One under which all vision tokens leave, one that chooses late and by the question, one before the language model."""

SHOWN = (0, 1, 0, 2, 1, 0)
"""Which picture or video each row shows: three, two and one of them, mixed."""
TGIF = {"class": "TGIFQA", "dataset": "TGIF-QA", "nframe": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the kit's folder of tables, with six questions about three pictures and as many about three videos."""
    base = tmp_path_factory.mktemp("sharing")
    (folder := base / "LMUData").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMUData", str(folder))
        patch.setenv("XDG_CACHE_HOME", str(base / "cache"))
        patch.delenv("PRED_FORMAT", raising=False)
        accept_any_sum()
        vlmeval_registry.register()
        register_kit_datasets()
        write(folder / "POPE.tsv", [pope_row(i, encoded(seed)) for i, seed in enumerate(SHOWN)])
        videos = dataset_folder()
        for seed in set(SHOWN):
            write_video(videos / VIDEOS / f"clip{seed}.mp4", seed, frames=12)
        rows = [
            {"index": i, "video": f"clip{seed}", "question": question(i), "answer": "red"}
            for i, seed in enumerate(SHOWN)
        ]
        write(videos / TABLE, rows)
        yield folder


def pope_row(index: int, image: str) -> dict[str, Any]:
    return {"index": index, "image": image, "question": question(index), "answer": "Yes", "category": "random"}


def write(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    pd.DataFrame(rows).to_csv(file, sep="\t", index=False)


@pytest.fixture(scope="module")
def model(checkpoint: Callable[[str], str]) -> Callable[..., VTWKitModel]:
    """Return a model of a family, opened once for the same options."""
    opened: dict[str, VTWKitModel] = {}

    def get(family: str, method: str = "baseline", **more: Any) -> VTWKitModel:
        cls, options = CLASSES[family]
        given = {"device": "cpu", "max_new_tokens": 4, "verify": False, **options, **more}
        key = f"{family} {sorted(given.items())}"
        if key not in opened:
            opened[key] = cls(pretrained=checkpoint(family), method="baseline", **given)
        opened[key].runner.exchange(parse_method(method))
        opened[key].runner.sharing.sound.clear()
        return opened[key]

    return get


@contextmanager
def tower_passes(made: VTWKitModel) -> Iterator[list[None]]:
    """Count passes of the vision tower."""
    passes: list[None] = []
    layers = [own[0] for own in find_tower(made.runner.anatomy).layers]
    handles = [layer.register_forward_pre_hook(lambda *_: passes.append(None)) for layer in layers]
    yield passes
    for handle in handles:
        handle.remove()


@contextmanager
def shared(made: VTWKitModel, how: str) -> Iterator[list[str]]:
    """Share or not, and note what is said."""
    said: list[str] = []
    before, made.runner.log = made.runner.log, said.append
    object.__setattr__(made.runner.options, "sharing", how)
    yield said
    object.__setattr__(made.runner.options, "sharing", "auto")
    made.runner.log = before


def run(made: VTWKitModel, dataset: Any, folder: Path, how: str) -> tuple[KitResult, int, list[str]]:
    """Return the result, how often the tower ran, and what was said."""
    with shared(made, how) as said, tower_passes(made) as passes:
        result = evaluate(made, "model", dataset, work_dir=folder / how)
    return result, len(passes), said


def costs(result: KitResult) -> list[TimedCosts]:
    return [TimedCosts.model_validate(told) for told in result.predictions["extra_records"]]


def check(alone: KitResult, together: KitResult, own: Sequence[int] = (3,)) -> None:
    """Check that answers, scores and whole records are equal, times aside; ``own`` are rows that share nothing."""
    assert list(together.predictions["index"]) == list(alone.predictions["index"])
    assert list(together.predictions["prediction"]) == list(alone.predictions["prediction"])
    assert len(set(together.predictions["prediction"])) > 1, "always the same answer proves nothing"
    assert together.metrics == alone.metrics
    assert [cost.untimed() for cost in costs(together)] == [cost.untimed() for cost in costs(alone)]
    assert all(cost.latency_s is not None for cost in costs(alone))
    assert [i for i, cost in enumerate(costs(together)) if cost.latency_s is not None] == list(own)


CASES = [
    *((family, method, TGIF if family == "video_llava" else "POPE") for family in CLASSES for method in METHODS),
    ("qwen2_vl", "random_k", TGIF),
    ("internvl", "divprune", TGIF),
]
"""The last one is shown frames as images."""


@pytest.mark.parametrize(("family", "method", "dataset"), CASES)
def test_answers_and_costs_are_those_of_each_question_alone(
    data: Path, model: Callable[..., VTWKitModel], tmp_path: Path, family: str, method: str, dataset: Any
) -> None:
    made = model(family, method)
    alone, often, _ = run(made, dataset, tmp_path, "off")
    together, once, said = run(made, dataset, tmp_path, "auto")
    check(alone, together)
    assert (often, once) == (6, 3 + 1), "one compares the method with a prompt alone"
    assert not said
    assert made.rows is not None
    assert not made.rows.known, "no answer is kept for longer than needed"


def test_a_model_that_the_kit_makes_of_its_name_is_told_of_videos(
    data: Path, model: Callable[..., VTWKitModel], tmp_path: Path
) -> None:
    from vlmeval.config import supported_VLM

    made = model("video_llava", "vtw,k=1")
    alone, _, _ = run(made, TGIF, tmp_path, "off")
    with mock.patch.dict(supported_VLM, {"model": lambda: made}):
        made.rows = None
        together = evaluate("model", "model", TGIF, work_dir=tmp_path / "named")
    check(alone, together)


@pytest.mark.parametrize(("family", "method"), [("llava", "vtw,k=1"), ("qwen2_vl", "fastv,k=2"), ("llava", "mmtok")])
def test_batches_are_of_rows_to_come(
    data: Path, model: Callable[..., VTWKitModel], tmp_path: Path, family: str, method: str
) -> None:
    """Two images at a time share, or two questions where nothing can be shared."""
    made = model(family, method)
    alone, _, _ = run(made, "POPE", tmp_path, "off")
    made = model(family, method, batch_size=2)
    together, _, said = run(made, "POPE", tmp_path, "auto")
    check(alone, together, range(6) if method == "mmtok" else (3,))
    rows = {cost.batch_rows for cost in costs(together)}
    # The packed ones are as many as ask about an image; of rows of their own there are two at most.
    assert rows == {"vtw,k=1": {1, 2, 3}, "fastv,k=2": {1, 2, 3}, "mmtok": {1, 2}}[method]
    assert bool(said) == (method == "mmtok")


def test_a_batch_of_pictures_in_other_numbers_of_tiles(
    data: Path, model: Callable[..., VTWKitModel], tmp_path: Path
) -> None:
    files = [str(tmp_path / f"{seed}.png") for seed in range(3)]
    for seed, file in enumerate(files):
        picture(seed).resize((300, 60 + 40 * seed)).save(file)
    made = model("internvl", "vtw,k=1", batch_size=3, max_patches=None)

    def request(dataset: str, shown: Sequence[str]) -> Request:
        parts = [*({"type": "image", "value": file} for file in shown), {"type": "text", "value": question(len(shown))}]
        asked = KitQuestion(parts, dataset)
        return Request(dataset, len(dataset), {"max_new_tokens": 4}, lambda family: family.kit_prompt(asked))

    requests = [request("MME", files[:1]), request("DocVQA_VAL", files[:2]), request("AI2D_TEST", [])]
    together = made.runner.answer(requests, progress=False)
    assert {answer.costs.batch_rows for answer in together} == {3}
    made.runner.batch_size = 1
    alone = made.runner.answer(requests, progress=False)
    made.runner.batch_size = 3
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert [a.costs.untimed() for a in together] == [a.costs.untimed() for a in alone]
    assert len({answer.costs.vision_tokens for answer in together}) == 3


@pytest.mark.parametrize(
    ("method", "options", "reason"),
    [
        ("mmtok", {}, "what the vision tower makes of each prompt"),
        ("vtw,k=1", {"dtype": "bfloat16"}, "in half precision it would round otherwise, as batches do"),
        ("vtw,k=1", {"temperature": 0.7}, "samples are drawn for a batch as a whole"),
        ("vtw,k=1", {"num_beams": 2}, "beams go on in rows of their own"),
    ],
)
def test_what_cannot_share_is_asked_one_by_one_and_says_why_once(
    data: Path,
    model: Callable[..., VTWKitModel],
    tmp_path: Path,
    method: str,
    options: dict[str, Any],
    reason: str,
) -> None:
    made = model("llava", method, **options)
    asked: list[int] = []
    answer = made.runner.answer

    def counting(requests: Sequence[Request], *, progress: bool) -> Any:
        asked.append(len(requests))
        return answer(requests, progress=progress)

    with mock.patch.object(made.runner, "answer", counting):
        together, _, said = run(made, "POPE", tmp_path, "auto")
    (line,) = said
    assert reason in line
    assert asked == [1] * 6, "nothing is answered before its turn"
    assert all(cost.latency_s is not None for cost in costs(together))


def test_half_precision_shares_where_batches_are_asked_for(
    data: Path, model: Callable[..., VTWKitModel], tmp_path: Path
) -> None:
    together, passes, _ = run(model("llava", dtype="bfloat16", batch_size=2), "POPE", tmp_path, "auto")
    assert [cost.latency_s is None for cost in costs(together)] == [True] * 3 + [False] + [True] * 2
    assert passes == 1 + 1 + 1, "two images together, the third alone, and a comparison"


def test_questions_that_are_worded_by_chance_are_asked_one_by_one(
    data: Path, model: Callable[..., VTWKitModel], tmp_path: Path
) -> None:
    """They are the ones that would be drawn without sharing; the answer to another one is never given."""
    from vlmeval.dataset.image_yorn import ImageYORNDataset

    original = ImageYORNDataset.build_prompt

    def drawn(self: Any, line: Any) -> list[dict[str, str]]:
        return [*original(self, line), {"type": "text", "value": f" Think of {random.random()}."}]

    made = model("llava", "vtw,k=1")
    found = {}
    with mock.patch.object(ImageYORNDataset, "build_prompt", drawn):
        for how in ("off", "auto"):
            random.seed(5)
            found[how], _, said = run(made, "POPE", tmp_path, how)
    check(found["off"], found["auto"], own=(2, 3, 4, 5))
    (line,) = said
    assert "VLMEvalKit asks others than its table lets expect" in line


def test_a_question_that_fails_does_so_in_its_turn(
    data: Path, model: Callable[..., VTWKitModel], tmp_path: Path
) -> None:
    made = model("llava", "vtw,k=1")
    family = type(made.family)
    original, generate = family.kit_prompt, made.generate_inner
    answered: list[str] = []

    def broken(self: Any, asked: KitQuestion) -> Any:
        if question(2) in asked.values("text")[-1]:
            raise KeyError("broken")
        return original(self, asked)

    def noting(message: Any, dataset: str | None = None) -> Any:
        found = generate(message, dataset)
        answered.append(found["prediction"])
        return found

    alone, _, _ = run(made, "POPE", tmp_path, "off")
    with mock.patch.object(family, "kit_prompt", broken), mock.patch.object(made, "generate_inner", noting):  # noqa: SIM117
        with pytest.raises(DocumentError, match=r"^POPE, index 2: KeyError: 'broken'$"):
            run(made, "POPE", tmp_path, "auto")
    assert answered == list(alone.predictions["prediction"][:2])


def test_rows_to_come() -> None:
    """Those behind a row that show the same, or what the next ones show, and that this process is asked about."""
    table = pd.DataFrame({"index": list("abcdefgh"), "image": ["x", "y", "x", "z", "y", "x", "x", "z"]})
    rows = VideoRows(_Dataset(table), mock.Mock())
    assert rows.behind("a", 1) == [2, 5, 6]
    assert rows.behind("c", 1) == [5, 6]
    assert rows.behind("d", 1) == [7]
    assert rows.behind("g", 1) == []
    assert rows.behind("a", 2) == [2, 5, 6, 1, 4]
    assert rows.behind("f", 9) == [6, 7]
    assert rows.behind("", 1) == rows.behind("?", 1) == []
    asked, other = KitQuestion([{"type": "text", "value": "a"}]), KitQuestion([{"type": "text", "value": "b"}])
    baseline, vtw = parse_method("baseline"), parse_method("vtw,k=1")
    answer: Any = object()
    for index in "cdef":
        rows.known[index] = Known(asked, vtw, answer)
    assert rows.behind("a", 1) == [6], "answers that are known are not wanted again"
    assert rows.behind("a", 2) == [6, 1]
    assert rows.take("c", asked, vtw) is answer
    assert rows.take("c", asked, vtw) is None
    assert rows.take("d", asked, baseline) is None
    assert rows.foreseen
    assert rows.take("e", other, vtw) is None
    assert rows.behind("a", 1) == [], "where others are asked than was foreseen, nothing is foreseen any more"
    with mock.patch("vtw_eval.model_adapters.vlmeval.rows.get_rank_and_world_size", return_value=(1, 2)):
        assert VideoRows(_Dataset(table), mock.Mock()).behind("b", 2) == [3, 7]
    many = VideoRows(_Dataset(pd.DataFrame({"index": range(100), "image": ["x"] * 100})), mock.Mock())
    assert many.behind("3", 1) == list(range(4, 4 + AHEAD))
    nothing = VideoRows(_Dataset(pd.DataFrame({"index": range(3), "image": [None, float("nan"), None]})), mock.Mock())
    assert nothing.behind("0", 1) == [], "nobody knows what they show"


class _Dataset:
    """As much of a dataset of the kit as is looked at."""

    def __init__(self, data: pd.DataFrame) -> None:
        self.data = data

    def build_prompt(self, line: int) -> None:
        """Return nothing."""
