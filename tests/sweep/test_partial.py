"""A document that fails costs the cell its scores, but not the answers of the others; notes on media are counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.costs import COSTS
from tests.sweep import conftest
from tests.sweep.conftest import PLAN
from vtw_eval.model_adapters.lmms.models import VTWModel
from vtw_eval.record.cell import Sample
from vtw_eval.record.costs import SampleCosts
from vtw_eval.record.store import Store
from vtw_eval.sweep.harness import Settings
from vtw_eval.sweep.plan import read_plan
from vtw_eval.sweep.runner import CellRunner, noted_media

SPEC = conftest.SPEC.model_copy(update={"task": "shapes_vqa", "limit": 7})


def test_the_answers_of_the_other_documents_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(PLAN))
    store = Store(tmp_path / "out")
    store.create(read_plan(tmp_path / "plan.yaml").index())
    runner = CellRunner(store, Settings(device="cpu", batch_size=4, verify=False))
    whole = runner.run(SPEC)
    assert whole.status == "done", whole.error
    expected = {sample.doc_id: sample.answer for sample in store.samples(whole)}
    read = VTWModel._read

    def broken(self: VTWModel, place: tuple[str, str, int], show: Any) -> Any:
        if place[2] == 3:
            raise OSError("cannot identify image file")
        return read(self, place, show)

    monkeypatch.setattr(VTWModel, "_read", broken)
    cell = runner.run(SPEC)
    assert cell.status == "failed"
    last = cell.error.strip().splitlines()[-1]
    assert last.endswith("split test, doc_id 3: OSError: cannot identify image file")
    assert last.count("doc_id") == 1
    kept = store.samples(cell)
    assert {sample.doc_id: sample.answer for sample in kept} == {k: v for k, v in expected.items() if k != "3"}
    assert all(not sample.scores and sample.costs and sample.costs.input_tokens > 0 for sample in kept)
    assert store.entry(SPEC).state == "failed"


def test_notes_on_media_are_counted() -> None:
    def costs(media: tuple[str, ...]) -> SampleCosts:
        return COSTS.untimed().model_copy(update={"media": media})

    samples = [
        Sample(doc_id=str(i), group="", target="", answer="", scores={}, costs=costs(("turned",) if i % 2 else ()))
        for i in range(9)
    ]
    assert noted_media(samples) == {"media": "turned: 4 documents (1; 3; 5; ...)"}
    assert noted_media(samples[:1]) == {}
