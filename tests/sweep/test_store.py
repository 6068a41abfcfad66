from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from vtw_eval.sweep.cell import Cell, CellSpec, Metric, Sample
from vtw_eval.sweep.plan import parse_plan
from vtw_eval.sweep.runner import failed_cell
from vtw_eval.sweep.store import CorruptError, Store, StoreError

PLAN = parse_plan(
    {
        "models": [{"name": "shapes", "adapter": "llava_vtw", "pretrained": "shapes"}],
        "methods": ["baseline", "vtw,k=2"],
        "tasks": ["shapes_pope", "shapes_vqa"],
    }
)
SPECS = PLAN.cells()
SAMPLES = [
    # A line separator of Unicode, a quote, a surrogate pair: nothing that breaks a line or a reader.
    Sample(doc_id=str(i), group="g", target="yes", answer=f"a\u2028b\n'\"|{chr(0x1F600)}", scores={"m": 1.0})
    for i in range(3)
]


def made(spec: CellSpec) -> Cell:
    return Cell(
        spec=spec,
        status="done",
        metrics={
            "z": Metric(value=1 / 3, aggregate="mean", percent=True),
            "a": Metric(value=2, aggregate="other", percent=False),
        },
        documents=3,
        seconds=1.0,
        finished="2024-01-01T00:00:00+00:00",
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "sweep")
    store.create(PLAN)
    return store


def test_what_is_saved_is_read_back_in_the_order_of_the_plan(store: Store) -> None:
    for spec in reversed(SPECS):
        store.save(made(spec), SAMPLES)
    cells = store.cells()
    assert [cell.spec for cell in cells] == SPECS
    assert list(cells[0].metrics) == ["z", "a"]
    assert cells[0].metrics["z"].value == 1 / 3
    assert store.samples(cells[0]) == SAMPLES
    assert store.problems() == []
    assert store.plan == PLAN


def test_equal_results_are_equal_bytes(store: Store, tmp_path: Path) -> None:
    other = Store(tmp_path / "other")
    for one in (store, other):
        one.create(PLAN)
        one.save(made(SPECS[0]), SAMPLES)
    for name in ("cell.json", "samples.jsonl"):
        assert (store.folder(SPECS[0]) / name).read_bytes() == (other.folder(SPECS[0]) / name).read_bytes()


def test_a_saved_cell_replaces_an_older_one(store: Store) -> None:
    store.save(failed_cell(SPECS[0], "Traceback\nValueError: no"), [])
    assert store.entry(SPECS[0]).state == "failed"
    assert store.entry(SPECS[0]).problem == "ValueError: no"
    store.save(made(SPECS[0]), SAMPLES)
    assert store.entry(SPECS[0]).state == "done"
    store.save(failed_cell(SPECS[0], "again"), [])
    assert store.entry(SPECS[0]).state == "failed"
    assert [path.name for path in store.folder(SPECS[0]).iterdir()] == ["cell.json"]
    assert len(list((store.root / "cells").iterdir())) == 1


@pytest.mark.parametrize("step", range(8))
@pytest.mark.parametrize("before", [False, True], ids=["new", "replacing"])
def test_a_process_that_dies_while_saving_leaves_all_or_nothing(store: Store, step: int, before: bool) -> None:
    """The process is killed before the step-th call that changes the file system."""
    if before:
        store.save(failed_cell(SPECS[0], "old"), [])
    calls = 0

    def dying(original):  # type: ignore[no-untyped-def]
        def call(*args, **given):  # type: ignore[no-untyped-def]
            nonlocal calls
            if calls == step:
                raise KeyboardInterrupt  # nothing in save() catches or cleans up after it
            calls += 1
            return original(*args, **given)

        return call

    died = False
    with (
        mock.patch("tempfile.mkdtemp", dying(__import__("tempfile").mkdtemp)),
        mock.patch("vtw_eval.sweep.store._write", dying(__import__("vtw_eval.sweep.store", fromlist=["x"])._write)),
        mock.patch.object(Path, "chmod", dying(Path.chmod)),
        mock.patch.object(Path, "rename", dying(Path.rename)),
        mock.patch("shutil.rmtree", dying(shutil.rmtree)),
    ):
        try:
            store.save(made(SPECS[0]), SAMPLES)
        except KeyboardInterrupt:
            died = True
    assert died == (step < (8 if before else 5))
    entry = store.entry(SPECS[0])
    assert entry.state in (("failed", "missing", "done") if before else ("missing", "done"))
    if entry.state == "done":
        assert store.samples(entry.cell) == SAMPLES  # type: ignore[arg-type]
    store.create(PLAN)  # as the next start does
    assert not [path for path in (store.root / "cells").iterdir() if path.name.startswith(".tmp-")]
    assert store.save(made(SPECS[0]), SAMPLES).samples_sha256
    assert store.entry(SPECS[0]).state == "done"


def spoil_digest(folder: Path) -> None:
    file = folder / "samples.jsonl"
    file.write_bytes(file.read_bytes().replace(b"yes", b"no ", 1))


def spoil_half(folder: Path) -> None:
    file = folder / "cell.json"
    file.write_bytes(file.read_bytes()[:100])


def spoil_version(folder: Path) -> None:
    file = folder / "cell.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "version": 0}))


def spoil_spec(folder: Path) -> None:
    file = folder / "cell.json"
    content = json.loads(file.read_text())
    content["spec"]["limit"] = 5
    file.write_text(json.dumps(content))


def spoil_missing(folder: Path) -> None:
    (folder / "samples.jsonl").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_digest, "digest differs"),
        (spoil_half, "cell.json"),
        (spoil_version, "version: Input should be 1"),
        (spoil_spec, "is of another cell"),
        (spoil_missing, "No such file"),
    ],
)
def test_what_is_not_as_it_was_written_is_not_believed(store: Store, spoil, message: str) -> None:  # type: ignore[no-untyped-def]
    for spec in SPECS:
        store.save(made(spec), SAMPLES)
    cell = store.cells()[1]
    spoil(store.folder(SPECS[1]))
    assert store.entry(SPECS[1]).state == "corrupt"
    assert message in store.entry(SPECS[1]).problem
    assert [found.spec for found in store.cells()] == [SPECS[0], *SPECS[2:]]
    assert len(store.problems()) == 1
    if spoil in (spoil_digest, spoil_missing):
        with pytest.raises(CorruptError):
            store.samples(cell)


def test_cells_of_another_plan_are_left_out(store: Store) -> None:
    for spec in SPECS:
        store.save(made(spec), SAMPLES)
    store.create(PLAN.changed(tasks=["shapes_vqa"]))
    assert [cell.spec.task for cell in store.cells()] == ["shapes_vqa", "shapes_vqa"]


def test_one_sweep_at_a_time(store: Store) -> None:
    code = (
        "import sys; from vtw_eval.sweep.store import Store\n"
        f"with Store({str(store.root)!r}).lock():\n print('locked', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(StoreError, match=f"in use by process {holder.pid}"), store.lock():
            pass
    finally:
        holder.kill()
        holder.wait()
    with store.lock():  # kill -9 has freed it
        assert (store.root / ".lock").read_text() == f"process {os.getpid()}"
