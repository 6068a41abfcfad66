"""A sweep on a Ray cluster of several nodes on this machine, with a worker that is killed while it has a cell."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster as RayNodes
from rich.console import Console

from tests.sweep.conftest import PLAN, Finished
from vtw_eval.record.cell import CellSpec
from vtw_eval.sweep.display import Display
from vtw_eval.sweep.plan import PlanError, parse_plan, read_plan
from vtw_eval.sweep.ray import Cluster
from vtw_eval.sweep.sweep import run_sweep

SMALL = 80 * 1024 * 1024


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Return the address of a cluster with a head that takes no work and two nodes of one core each."""
    head = {"num_cpus": 0, "object_store_memory": SMALL, "include_dashboard": False}
    nodes = RayNodes(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            nodes.add_node(num_cpus=1, object_store_memory=SMALL)
        nodes.wait_for_nodes()
        yield nodes.address
    finally:
        nodes.shutdown()


class Killer(Display):
    """Kills the first process that has begun a cell."""

    def __init__(self) -> None:
        self.killed: list[int] = []
        self.notes: list[str] = []
        self.nodes: set[str] = set()
        super().__init__(Console(quiet=True))

    def started(self, worker: int, spec: CellSpec, others: int = 0) -> None:
        super().started(worker, spec, others)
        if worker == 0 and not self.killed:
            self.killed.append(0)
            threading.Thread(target=self._kill, daemon=True).start()

    def note(self, message: str) -> None:
        self.notes.append(message)

    def _kill(self) -> None:
        while True:
            for process in psutil.Process().children(recursive=True):
                # Ray names the process after the method that it is at.
                if process.is_running() and process.name().startswith("ray::ActorBody.") and ".run" in process.name():
                    process.kill()
                    self.killed = [process.pid]
                    return
            time.sleep(0.1)


def test_a_cluster_gives_the_same_cells_though_a_worker_is_killed(
    address: str, finished: Finished, contents: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    with Killer() as watcher:
        entries = run_sweep(read_plan(finished.plan), tmp_path / "out", watcher, cluster=Cluster(address))
    assert watcher.killed != [0], "nobody was killed"
    assert [entry.state for entry in entries] == ["done"] * 4 + ["failed"] * 2
    assert "were trained for other weights" in entries[-1].problem
    assert len(watcher.notes) == 1
    assert "died: The actor died unexpectedly before finishing this task" in watcher.notes[0]
    assert contents(tmp_path / "out") == contents(finished.folder)
    assert not ray.is_initialized(), "the sweep leaves the cluster when it has done"


def test_gpus_that_the_cluster_does_not_have_are_an_error(address: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="the cluster has 0 GPUs, but a worker asks for 1"):
        run_sweep(parse_plan(PLAN), tmp_path, Killer(), cluster=Cluster(address, num_gpus=1))
