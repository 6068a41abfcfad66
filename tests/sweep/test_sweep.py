"""Whole sweeps of the embedded model, in processes of their own."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.sweep.conftest import Finished, command, environment
from vtw_eval.checkpoints import CHECKPOINT
from vtw_eval.record.metrics import aggregate
from vtw_eval.record.store import Store, describe

Contents = Callable[[Path], dict[str, Any]]


def test_a_failed_cell_is_recorded_and_the_others_finish(finished: Finished) -> None:
    assert finished.code == 1
    assert "4 of 6 cells done" in finished.output
    store = Store(finished.folder)
    assert [cell.spec.method for cell in store.cells()] == ["baseline"] * 2 + ["vtw,k=2,position=keep"] * 2
    failed = [entry for entry in store.entries() if entry.state == "failed"]
    assert [entry.spec.task for entry in failed] == ["shapes_mme", "shapes_caption"]
    for entry in failed:
        assert entry.problem.startswith("ValueError: the gates ")
        assert "were trained for other weights" in entry.problem
        assert entry.cell is not None
        assert "Traceback" in entry.cell.error
        assert f"{describe(entry.spec)}: failed" in finished.output
    assert len(store.problems()) == 2
    assert not list((store.root / "cells").glob(".tmp-*"))


def test_status_tells_what_there_is(finished: Finished) -> None:
    from typer.testing import CliRunner

    from vtw_eval.cli import app

    shown = CliRunner().invoke(app, ["sweep", "--status", str(finished.folder)])
    assert shown.exit_code == 0
    rows = [line.split() for line in shown.output.splitlines()]
    assert rows[2] == ["shapes", "baseline", "600.00", "87.50"]
    assert rows[4][-2:] == ["failed", "failed"]
    assert "Small: 6 cells, 4 done, 2 failed" in shown.output


def test_metrics_follow_from_the_samples(finished: Finished) -> None:
    store = Store(finished.folder)
    for cell in store.cells():
        samples = store.samples(cell)
        assert cell.documents == len(samples) == 8
        assert [sample.doc_id for sample in samples] == [str(i) for i in range(8)]
        for name, metric in cell.metrics.items():
            assert math.isclose(aggregate(metric.aggregate, name, samples), metric.value, abs_tol=1e-9)
    mme, caption = store.cells()[:2]
    assert {sample.category for sample in store.samples(mme)} == {"existence", "count", "color"}
    assert len({sample.group for sample in store.samples(mme)}) == 4
    assert len({sample.group for sample in store.samples(caption)}) == 8


@pytest.fixture(scope="module")
def stock() -> Callable[[str, str], Any]:
    """Return lmms-eval's own results for one of our models, by its own evaluation."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from vtw_eval.model_adapters.lmms.cli import tasks_folder

    manager = TaskManager("ERROR", include_path=[str(tasks_folder())], include_defaults=False, model_name="llava_vtw")

    def evaluate(method: str, task: str) -> Any:
        return simple_evaluate(
            model="llava_vtw",
            model_args=f"pretrained={CHECKPOINT},method={method},dtype=float32",
            tasks=[task],
            batch_size=8,
            device="cpu",
            limit=8,
            bootstrap_iters=0,
            task_manager=manager,
        )

    return evaluate


@pytest.mark.parametrize(("method", "number"), [("baseline", 0), ("vtw,k=2", 2)])
def test_a_cell_says_what_lmms_eval_says(
    finished: Finished, stock: Callable[[str, str], Any], method: str, number: int
) -> None:
    """Also with other batches, and a model that has not had another method before."""
    store = Store(finished.folder)
    for task, cell in zip(("shapes_mme", "shapes_caption"), store.cells()[number : number + 2], strict=True):
        theirs = stock(method, task)
        assert {name: metric.value for name, metric in cell.metrics.items()} == {
            name: theirs["results"][task][f"{name},none"] for name in cell.metrics
        }
        logged = sorted(theirs["samples"][task], key=lambda row: row["doc_id"])
        for sample, row in zip(store.samples(cell), logged, strict=True):
            assert sample.answer == row["resps"][0][0]
            assert sample.target == row["target"]
            (counts,) = row["token_counts"]
            assert sample.costs is not None
            kept = sample.costs.model_dump(mode="json")
            assert kept == {k: v for k, v in counts.items() if k not in ("latency_s", "batch_rows")}
        costs = cell.costs
        assert costs is not None
        tokens = [row["token_counts"][0]["tokens_per_layer"] for row in logged]
        assert costs.tokens_per_layer == [sum(column) / 8 for column in zip(*tokens, strict=True)]
        assert math.isclose(costs.prefill_flops["eq1"], theirs["throughput"]["avg_prefill_flops"])
        assert theirs["throughput"]["avg_verified"] == 1
        # keys and values, 4 key-value heads of 32 numbers, 4 bytes each: see the checkpoint's config
        text = json.loads((CHECKPOINT / "config.json").read_text())["text_config"]
        width = text.get("num_key_value_heads", text["num_attention_heads"]) * text["head_dim"]
        assert math.isclose(costs.kv_bytes, 2 * width * 4 * sum(costs.tokens_per_layer))
        assert costs.prefill_flops["exact"] > costs.prefill_flops["profiler"]


class Running:
    """A sweep that is going to be disturbed."""

    def __init__(self, plan: Path, folder: Path, log: Path, *more: str) -> None:
        self.folder = folder
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command(plan, folder, *more),
                env=environment(),
                stdout=out,
                stderr=out,
                start_new_session=True,
                # A shell that runs the tests in the background lets everything in it ignore Ctrl-C.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def cells(self) -> int:
        return len([path for path in (self.folder / "cells").glob("*/cell.json") if path.parent.name[0] != "."])

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 240
        while not condition():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self) -> tuple[int, str]:
        code = self.process.wait(timeout=240)
        return code, self.log.read_text()


def journalled(folder: Path) -> Counter[str]:
    """Return how often each answer is in the books of a sweep; lines that are not whole do not count."""
    found: Counter[str] = Counter()
    for file in folder.glob("books/*/*.jsonl"):
        for line in file.read_bytes().splitlines(keepends=True):
            if line.endswith(b"}\n"):
                found[json.loads(line.partition(b" ")[2])["key"]] += 1
    return found


def gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=20)
    return not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_killed_interrupted_and_spoilt_it_ends_the_same(finished: Finished, contents: Contents, tmp_path: Path) -> None:
    moments = random.Random(0)
    folder = tmp_path / "out"
    logs = (tmp_path / f"log{number}" for number in range(9))

    # 1. kill -9 of the sweep while its first cell answers for three methods, or a little later
    sweep = Running(finished.plan, folder, next(logs), "--workers", "1")
    sweep.until(lambda: len(journalled(folder)) > 0)
    children = sweep.children()
    sweep.process.kill()
    sweep.process.wait()
    assert gone(children), "workers outlive their sweep"
    known = journalled(folder)
    assert known, "answers were kept before their cells were"
    before = {path: path.stat().st_mtime_ns for path in (folder / "cells").glob("[!.]*/cell.json")}

    # 2. kill -9 of a worker: its cell fails, the rest goes on
    (folder / "logs").mkdir(exist_ok=True)
    told = folder / "logs" / "worker-0.log"
    length = told.stat().st_size if told.exists() else 0
    sweep = Running(finished.plan, folder, next(logs), "--workers", "1")
    sweep.until(lambda: told.exists() and b"\n---" in b"\n" + told.read_bytes()[length:])
    time.sleep(moments.random())
    workers = [child for child in sweep.children() if "spawn_main" in " ".join(child.cmdline())]
    workers[0].kill()
    code, text = sweep.end()
    assert code == 1
    assert "the worker process was ended by SIGKILL (memory ran out, or somebody killed it)" in text
    assert "3 of 6 cells done" in text
    # what was done before has not been touched
    assert before == {path: path.stat().st_mtime_ns for path in before}

    # 3. two cells are spoilt, and somebody presses Ctrl-C
    store = Store(folder)
    first, second = store.cells()[:2]
    lines = (store.folder(first.spec) / "samples.jsonl").read_text()
    (store.folder(first.spec) / "samples.jsonl").write_text(lines.replace('"answer": "', '"answer": "not ', 1))
    (store.folder(second.spec) / "cell.json").write_text("{")
    sweep = Running(finished.plan, folder, next(logs), "--workers", "1")
    # Not while modules are imported: some swallow an interrupt.
    sweep.until(lambda: len(sweep.children()) > 0 and "cells are done already" in sweep.log.read_text())
    time.sleep(moments.random())
    children = sweep.children()
    os.killpg(sweep.process.pid, signal.SIGINT)
    code, text = sweep.end()
    assert code == 130, text
    assert "interrupted; what is done stays in" in text
    assert gone(children)

    # 4. and now to the end
    code, text = Running(finished.plan, folder, next(logs), "--workers", "2").end()
    assert code == 1
    assert "4 of 6 cells done" in text
    assert "samples.jsonl is not what was written with the cell" in text
    assert "corrupt and runs again" in text
    assert contents(folder) == contents(finished.folder)
    assert not list((folder / "cells").glob(".tmp-*"))
    # the books are there for the method that fails, and hold no answer twice
    everything = journalled(folder)
    assert everything == journalled(finished.folder)
    assert known <= everything
    assert set(everything.values()) == {1}
    assert len(everything) == 2 * 2 * 8
