"""Run several lmms-eval evaluations in one process: ``python -m tests.model_adapters.lmms.drive JOBS.json OUT.json``.

A process of its own, because lmms-eval and datasets read the environment and the working folder when imported. One
process for many evaluations, because importing them takes longer than running a tiny model.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

if importlib.util.find_spec("decord") is None:
    sys.path.append(str(Path(__file__).parents[2] / "support" / "stubs"))


@contextlib.contextmanager
def hidden(file: str | None) -> Iterator[None]:
    """Take a file away for a while."""
    if file is None:
        yield
        return
    away = Path(file).with_suffix(".away")
    Path(file).rename(away)
    try:
        yield
    finally:
        away.rename(file)


def command(words: list[str]) -> dict[str, Any]:
    """Run our command line and return its exit status and the lines that it wrote about errors."""
    from vtw_eval.model_adapters.lmms import cli as lmms_cli

    errors = io.StringIO()
    code: Any = 0
    with contextlib.redirect_stderr(errors), mock.patch.object(sys, "argv", ["lmms_eval", *words]):
        try:
            lmms_cli.main()
        except SystemExit as error:
            code = error.code
    return {"code": code, "stderr": errors.getvalue()}


def run(job: dict[str, Any], manager: Any) -> dict[str, Any]:
    """Evaluate one model and return answers and token counts by task, in the order of the documents."""
    from lmms_eval.evaluator import simple_evaluate

    results = simple_evaluate(
        model=job["model"],
        model_args=job["args"],
        tasks=list(job["tasks"]),
        batch_size=job.get("batch_size", 1),
        device="cpu",
        gen_kwargs=job.get("gen_kwargs", "max_new_tokens=12"),
        force_simple=job.get("simple", False),
        bootstrap_iters=0,
        task_manager=manager,
    )
    samples = {task: sorted(rows, key=lambda row: row["doc_id"]) for task, rows in results["samples"].items()}
    return {
        "answers": {
            task: [row["resps"][0] if isinstance(row["resps"], list) else row["resps"] for row in rows]
            for task, rows in samples.items()
        },
        "costs": {task: [row["token_counts"][0] for row in rows] for task, rows in samples.items()},
    }


def main() -> None:
    """Command line."""
    from lmms_eval.tasks import TaskManager

    manager = TaskManager("ERROR")
    jobs = json.loads(Path(sys.argv[1]).read_text())
    found: dict[str, Any] = {}
    for name, job in jobs.items():
        try:
            with hidden(job.get("hide")):
                found[name] = command(job["command"]) if "command" in job else run(job, manager)
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            found[name] = {"error": f"{type(error).__name__}: {error}"}
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
