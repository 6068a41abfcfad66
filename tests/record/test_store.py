from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from vtw_eval.record.cell import Cell, CellSpec, Metric, Sample
from vtw_eval.record.store import CorruptError, Store, StoreError
from vtw_eval.sweep.plan import parse_plan
from vtw_eval.sweep.runner import failed_cell

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
    store.create(PLAN.index())
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
    assert store.index == PLAN.index()


def test_equal_results_are_equal_bytes(store: Store, tmp_path: Path) -> None:
    other = Store(tmp_path / "other")
    for one in (store, other):
        one.create(PLAN.index())
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
        mock.patch("vtw_eval.record.store._write", dying(__import__("vtw_eval.record.store", fromlist=["x"])._write)),
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
    with mock.patch("vtw_eval.record.store.has_ended", return_value=True):  # the process that was killed
        store.create(PLAN.index())  # as the next start does
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
    store.create(PLAN.changed(tasks=["shapes_vqa"]).index(), take_over=True)
    assert [cell.spec.task for cell in store.cells()] == ["shapes_vqa", "shapes_vqa"]


def test_one_sweep_at_a_time(store: Store) -> None:
    code = (
        "import sys; from vtw_eval.record.store import Store\n"
        f"with Store({str(store.root)!r}).lock():\n print('locked', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(StoreError, match=f"in use by process {holder.pid} on {socket.gethostname()}"), store.lock():
            pass
    finally:
        holder.kill()
        holder.wait()
    with store.lock():  # kill -9 has freed it
        assert (store.root / ".lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}"


def refused(*_: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize("flock", [refused, lambda *_: None], ids=["no locks", "locks without effect"])
def test_one_sweep_at_a_time_without_locks_of_the_file_system(store: Store, flock: Callable[..., None]) -> None:
    # The other process has locks without effect, too.
    code = (
        "import sys, fcntl; fcntl.flock = lambda *_: None\nfrom vtw_eval.record.store import Store\n"
        f"with Store({str(store.root)!r}).lock():\n print('locked', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    notes: list[str] = []
    with mock.patch("fcntl.flock", flock):
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "locked\n"
            told = f"in use by process {holder.pid} on {socket.gethostname()}: wait for it"
            with pytest.raises(StoreError, match=told), store.lock(notes.append):
                pass
        finally:
            holder.kill()
            holder.wait()
        with store.lock(notes.append):  # the marker of a dead process
            assert (store.root / ".lease").exists()
    assert not (store.root / ".lease").exists()
    assert all("refuses locks (No locks available)" in note for note in notes)
    assert len(notes) == (2 if flock is refused else 0)


def test_the_marker_of_another_machine_is_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken over only when nobody refreshes it."""
    monkeypatch.setattr("vtw_eval.record.lease.LEASE", 1.0)
    notes: list[str] = []
    code = (
        "import sys\n"
        "import vtw_eval.record.lease as lease; lease.LEASE = 1.0\n"
        f"with lease.leased(__import__('pathlib').Path({str(store.root / '.lease')!r}), print):\n"
        " print('locked', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with mock.patch("socket.gethostname", return_value="elsewhere"):  # so that the other is far away
            with pytest.raises(StoreError, match=f"in use by process {holder.pid} on "), store.lock(notes.append):
                pass
            assert f"process {holder.pid} on " in notes[0]
            assert "waiting 1 s for a sign of life" in notes[0]
            holder.kill()
            holder.wait()
            with store.lock(notes.append):
                pass
    finally:
        holder.kill()
        holder.wait()


def test_half_written_files_of_a_live_process_stay(store: Store) -> None:
    cells = store.root / "cells"
    other = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    host = socket.gethostname()
    try:
        kept = [f"{other.pid}-{host}", f"{os.getpid()}-{host}", "1-elsewhere"]
        folders = [cells / f".tmp-{owner}-abc" for owner in kept] + [cells / ".tmp-of-an-older-version"]
        for folder in folders:
            folder.mkdir()
        store.create(PLAN.index())
        assert all(folder.exists() for folder in folders)
    finally:
        other.kill()
        other.wait()
    long_ago = time.time() - 7200
    for folder in folders[2:]:
        os.utime(folder, (long_ago, long_ago))
    store.create(PLAN.index())
    assert [folder.exists() for folder in folders] == [False, True, False, False]


def test_a_folder_is_not_taken_over_by_another_plan(store: Store) -> None:
    more = PLAN.changed(methods=["baseline", "vtw,k=2", "vtw,k=3"], batch_size=4)
    fewer = PLAN.changed(tasks=["shapes_vqa"])
    store.create(fewer.index())  # nothing is done yet
    store.create(PLAN.index())
    for spec in SPECS:
        store.save(made(spec), SAMPLES)
    store.create(more.index())
    store.create(PLAN.index())
    for other in (fewer, PLAN.changed(limit=4)):
        with pytest.raises(StoreError, match=r"holds another plan.*none of this plan's .such as shapes / baseline"):
            store.create(other.index())
        assert store.index == PLAN.index()
    store.index_file.write_text('{"cells": [')
    with pytest.raises(StoreError, match=r"index\.json: Invalid JSON.*--take-over"):
        store.create(PLAN.index())
    store.create(PLAN.index(), take_over=True)
    assert len(store.cells()) == 4


@pytest.mark.parametrize("name", ["index.json", "plan.yaml"])
def test_a_users_own_file_is_not_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(StoreError, match=rf"{re.escape(name)} is not of a sweep and would be replaced: give another"):
        Store(tmp_path).create(PLAN.index())
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, "mine")]


def test_a_folder_that_cannot_be_used_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError, match=f"{folder} cannot be used: ") as error, Store(folder).lock():
            pass
        assert "\n" not in str(error.value)
