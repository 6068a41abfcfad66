"""Sweeps with made-up samples, written through the real store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from vtw_eval.record.cell import Cell, CellCosts, CellSpec, Metric, Sample
from vtw_eval.record.store import Store
from vtw_eval.report.stats.aggregate import value_of
from vtw_eval.report.stats.evidence import Documents, Evidence, Kind, evidence_of
from vtw_eval.sweep.plan import parse_plan

TASKS: Mapping[str, tuple[Kind, str]] = {
    "shapes_mme": ("mme", "mme_perception_score"),
    "shapes_pope": ("f1", "pope_f1_score"),
    "shapes_vqa": ("mean", "exact_match"),
}
_KINDS: Mapping[str, tuple[Kind, str]] = {**TASKS, "pope": ("f1", "pope_f1_score")}


def documents(count: int, groups: Sequence[str] | None = None, categories: Sequence[str] | None = None) -> Documents:
    ids = tuple(f"{i:06d}" for i in range(count))
    return Documents(ids, tuple(groups or ids), tuple(categories or ("",) * count), "")


def scored(kind: Kind, docs: Documents, scores: Sequence[float] | np.ndarray) -> Evidence:
    return Evidence(kind, docs, np.asarray(scores, dtype=float)[:, None])


def yes_no(docs: Documents, right: np.ndarray, targets: np.ndarray) -> Evidence:
    """Evidence for F1 from booleans: which answers are right, which targets are yes."""
    told = np.where(right, targets, ~targets)
    columns = [right, told & targets, told & ~targets, ~told & targets, targets]
    return Evidence("f1", docs, np.column_stack(columns).astype(float))


def samples_of(task: str, count: int, answer: Callable[[int, str], str]) -> list[Sample]:
    kind, metric = _KINDS[task]
    found = []
    for i in range(count):
        target = ("yes", "no")[i % 2] if kind != "mean" else f"word{i}"
        told = answer(i, target)
        found.append(
            Sample(
                doc_id=str(i),
                group=f"image{i // 2}",
                category=("count", "color")[i // 2 % 2] if kind == "mme" else "",
                target=target,
                answer=told,
                prediction=told,
                scores={metric: float(told == target)},
            )
        )
    return found


def cell_of(spec: CellSpec, samples: Sequence[Sample], flops: float, **changes: object) -> Cell:
    kind, metric = _KINDS[spec.task]
    value = value_of(evidence_of(samples, [metric], kind))
    costs = CellCosts(
        prefill_flops={"eq1": flops, "exact": 2 * flops},
        kv_bytes=1.0,
        input_tokens=90.0,
        vision_tokens=64.0,
        tokens_per_layer=[90.0],
        vision_per_layer=[64.0],
        latency_s=0.1,
    )
    fields = {
        "spec": spec,
        "status": "done",
        "methods": [spec.method],
        "metrics": {metric: Metric(value=value, aggregate=kind, percent=kind != "mme")},
        "documents": len(samples),
        "costs": costs,
        "seconds": 1.5,
        "finished": "2026-01-01T00:00:00+00:00",
        "environment": {"torch": "2.0", "device": "cpu"},
        **changes,
    }
    return Cell.model_validate(fields)


def make_store(
    folder: Path,
    methods: Sequence[str] = ("baseline", "vtw,k=2", "vtw,k=4"),
    *,
    wrong: Mapping[str, float] | None = None,
    count: int = 80,
    tasks: Sequence[str] = tuple(TASKS),
    models: Sequence[str] = ("tiny",),
    pretrained: str = "shapes",
    wrong_answer: str = "maybe",
    seed: int = 0,
    names: Mapping[str, str] | None = None,
) -> Store:
    """Write a sweep in which each method answers a share of the documents wrongly.

    ``wrong`` is by method key as written in ``methods``; FLOPs are 1e9 for the baseline and less for every next method.
    """
    shares = {"baseline": 0.02, **(wrong or {})}
    plan = parse_plan(
        {
            "models": [{"name": name, "adapter": "llava_vtw", "pretrained": pretrained} for name in models],
            "methods": list(methods),
            "tasks": list(tasks),
            "names": dict(names or {}),
        }
    )
    store = Store(folder)
    store.create(plan.index())
    order = list(dict.fromkeys(spec.method for spec in plan.cells()))
    for spec in plan.cells():
        number = order.index(spec.method)
        share = shares.get(methods[number], 0.1)
        bad = np.random.default_rng([seed, number, len(spec.task)]).random(count) < share
        flipped = {"yes": "no", "no": "yes"}
        rows = samples_of(spec.task, count, lambda i, target: flipped.get(target, wrong_answer) if bad[i] else target)  # noqa: B023
        store.save(cell_of(spec, rows, 1e9 / (1 + number)), rows)
    return store
