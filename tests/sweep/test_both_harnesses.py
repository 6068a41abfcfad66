"""The embedded models of all adapters answer the same documents alike in both harnesses.

But for what the harnesses do to them: lmms-eval's tasks end an answer after 16 tokens, its adapter for Qwen2-VL shows
pictures after JPEG, its adapter for Video-LLaVA puts a question mark.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lmms_eval")
pytest.importorskip("vlmeval")

from tests.support.few_scenes import few_scenes
from vtw_eval.record.cell import Cell, Sample
from vtw_eval.record.store import Store
from vtw_eval.sweep.harness import Settings
from vtw_eval.sweep.plan import parse_plan, resolve
from vtw_eval.sweep.runner import CellRunner

MODELS: dict[str, dict[str, Any]] = {
    "boards": {"adapter": "llava_vtw"},
    "boards_qwen2_vl": {"adapter": "qwen2vl_vtw", "args": {"min_pixels": 50176}},
    "boards_internvl": {"adapter": "internvl_vtw"},
    "moves_video_llava": {"adapter": "video_llava_vtw"},
}
"""Adapters of the embedded models, with their options."""
AS_LMMS: dict[str, dict[str, Any]] = {"moves_video_llava": {"conversation": "lmms-eval"}}
"""Options by which VLMEvalKit asks as lmms-eval does, which some models need."""
TASKS = {
    "lmms-eval": {"boards": ["boards_vqa", "boards_ai2d"], "moves": ["moves_action", "moves_choice"]},
    "vlmevalkit": {"boards": ["Boards_VQA", "Boards_AI2D"], "moves": ["Moves_Action", "Moves_Choice"]},
}
METHODS = ["baseline", "vtw,k=4"]


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Test sets of four scenes."""
    base = tmp_path_factory.mktemp("both")
    with pytest.MonkeyPatch.context() as patch:
        few_scenes(patch, base, 4)
        yield base


def run(harness: str, name: str, folder: Path) -> list[tuple[Cell, list[Sample]]]:
    """Evaluate a model on its tasks; return the cells with their samples."""
    model = MODELS[name]
    args = model.get("args", {})
    if harness == "vlmevalkit":
        args = {**args, "max_new_tokens": 16, **AS_LMMS.get(name, {})}
    plan = {
        "models": [{"name": name, "pretrained": name, **model, "args": args}],
        "methods": METHODS,
        "tasks": TASKS[harness][name.partition("_")[0]],
        "harness": harness,
        "device": "cpu",
        "dtype": "float32",
        "verify": False,
    }
    store = Store(folder / f"{harness}-{name}")
    store.create(resolve(parse_plan(plan)).index())
    runner = CellRunner(store, Settings("cpu", verify=False))
    return [(cell, store.samples(cell)) for cell in map(runner.run, store.index.cells)]


@pytest.mark.parametrize("name", MODELS)
def test_answers_and_costs_are_the_same(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vtw_eval.models.qwen2_vl.through_jpeg", lambda image: image)
    theirs, ours = (run(harness, name, folder) for harness in ("lmms-eval", "vlmevalkit"))
    right = []
    for (lmms, lmms_samples), (kit, kit_samples) in zip(theirs, ours, strict=True):
        assert lmms.error == kit.error == ""
        assert lmms.spec.method == kit.spec.method
        assert [s.answer for s in lmms_samples] == [s.answer for s in kit_samples]
        assert [s.target.lower() for s in lmms_samples] == [s.target.lower() for s in kit_samples]
        for a, b in zip(lmms_samples, kit_samples, strict=True):
            assert a.costs is not None
            assert b.costs is not None
            assert a.costs.vision_tokens == b.costs.vision_tokens > 0
        if lmms.spec.method == "baseline":
            right += [a.answer.strip(". ").lower() == a.target.lower() for a in lmms_samples]
    assert sum(right) > 0.7 * len(right) >= 11, "the embedded model sees"
