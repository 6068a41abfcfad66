"""k=search,by=metric: each half of the documents at the k that the scores of the other half give."""

from __future__ import annotations

from pathlib import Path

import pytest

from vtw_eval import VTW
from vtw_eval.methods import parse_method
from vtw_eval.models.runner import Runner
from vtw_eval.record.cell import Cell, CellSpec, Sample
from vtw_eval.record.store import Store
from vtw_eval.runtime import pick_device
from vtw_eval.sweep.halves import halves
from vtw_eval.sweep.harness import Settings
from vtw_eval.sweep.runner import CellRunner

START, LAYERS, LOSS = 5, 10, 5
SPEC = CellSpec(
    model="shapes",
    adapter="llava_vtw",
    pretrained="shapes",
    model_args={"dtype": "float32"},
    method=f"vtw,k=search,by=metric,loss={LOSS},start={START}",
    task="shapes_caption",
    limit=12,
)
METRICS = ("exact_match", "object_f1")


def evaluated(store: Store, method: str, *, sharing: str = "auto") -> tuple[Cell, list[Sample]]:
    """Evaluate a cell, or one of a model that answers each prompt alone."""
    runner = CellRunner(store, Settings(batch_size=4, verify=False, device="cpu"))
    given = {"dtype": "float32", "sharing": sharing}
    cell = runner.run(SPEC.model_copy(update={"method": method, "model_args": given}))
    assert cell.status == "done", cell.error
    return cell, store.samples(cell)


def test_each_half_runs_at_the_smallest_k_that_is_good_enough_on_the_other(tmp_path: Path) -> None:
    cell, found = evaluated(Store(tmp_path / "searched"), SPEC.method)
    alone = Store(tmp_path / "alone")
    by_k = {k: evaluated(alone, f"vtw,k={k}", sharing="off")[1] for k in range(START, LAYERS + 1)}

    def mean(k: int, docs: set[str], metric: str) -> float:
        return sum(s.scores[metric] for s in by_k[k] if s.doc_id in docs) / len(docs)

    groups = [{s.group for s in found if s.doc_id in half} for half in map(set, halves(found))]
    assert groups[0] and groups[1] and not groups[0] & groups[1]
    expected: dict[str, int] = {}
    for seen, others in ((0, 1), (1, 0)):
        docs = {s.doc_id for s in found if s.group in groups[seen]}
        k = next(
            k for k in by_k if all(mean(k, docs, m) >= mean(LAYERS, docs, m) - LOSS / 100 - 1e-12 for m in METRICS)
        )
        expected |= {s.doc_id: k for s in found if s.group in groups[others]}
    assert len(set(expected.values())) == 2  # so that halves that are mixed up are noticed
    assert set(expected) == {s.doc_id for s in found}
    for sample in found:
        (single,) = [s for s in by_k[expected[sample.doc_id]] if s.doc_id == sample.doc_id]
        assert (sample.answer, sample.scores) == (single.answer, single.scores)
        assert sample.costs is not None
        assert single.costs is not None
        assert sample.costs.tokens_per_layer == single.costs.tokens_per_layer
        assert sample.costs.method == single.costs.method
        assert parse_method(sample.costs.asked) == parse_method(f"{SPEC.method},position=keep")
    for metric in METRICS:
        assert cell.metrics[metric].value == pytest.approx(sum(s.scores[metric] for s in found) / len(found))
    assert cell.methods == sorted({f"vtw,k={k},position=keep" for k in expected.values()})
    for k in set(expected.values()):
        assert f"k={k} for 6 documents, chosen on 6 others" in cell.environment["search"]


def test_an_adapter_alone_refuses_it_before_anything_is_loaded() -> None:
    arguments = {"pretrained": "nowhere", "method": "vtw", "k": "search", "by": "metric"}
    with pytest.raises(ValueError, match="vtw-eval sweep"):
        Runner("llava_vtw", arguments, simple=False, device=pick_device("cpu"), log=print)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("vtw,k=3,by=metric", "belong to k=search"),
        ("vtw,k=search,by=score", "'kl' or 'metric'"),
        ("vtw,k=search,loss=1", "k=search,by=metric"),
        ("vtw,k=search,by=metric,eta=0.1", "takes loss"),
        ("vtw,k=search,by=metric,samples=9", "all documents"),
        ("vtw,k=search,by=metric,loss=-1", "loss=-1"),
        ("vtw,k=search,by=metric,position=rearrange", "keep their positions"),
        ("fastv+vtw,vtw.k=search,vtw.by=metric", "of vtw alone"),
    ],
)
def test_what_makes_no_sense_is_refused(spec: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_method(spec)


def test_its_spec_makes_it_again() -> None:
    method = parse_method("vtw,k=search,by=metric,loss=2.5")
    assert parse_method(str(method)) == method == VTW(k="search", by="metric", loss=2.5)
    assert method.found(4) == VTW(k=4)
