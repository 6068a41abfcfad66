"""VTW at every k on tasks of lmms-eval: answered at once, scored by the harness for each k, kept as cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vtw_eval.errors import suggest
from vtw_eval.importing import importing
from vtw_eval.methods import VTW, parse_method
from vtw_eval.models.adapters import ADAPTERS
from vtw_eval.models.options import check_unique_names
from vtw_eval.record.cell import CellSpec
from vtw_eval.record.curves import divergence_file
from vtw_eval.record.store import Entry, Store
from vtw_eval.report.search import read_divergence, write_divergence
from vtw_eval.sweep.curves import curve_plan_of
from vtw_eval.sweep.harness import OpenModel, Settings
from vtw_eval.sweep.plan import Plan, PlanError
from vtw_eval.sweep.runner import CellRunner
from vtw_eval.sweep.schedule import Watcher
from vtw_eval.sweep.sweep import run_sweep

_ELSEWHERE = {
    "method": "it is vtw at each k",
    "k": "use --k",
    "batch_size": "use --batch-size",
    "device": "use --device",
}
"""Options of the adapters that a curve has otherwise, and where."""


def curve_plan(
    adapter: str,
    model_args: str,
    tasks: Sequence[str],
    ks: Sequence[int] | None,
    *,
    limit: int | None = None,
    batch_size: int = 1,
    device: str | None = None,
    verify: bool = True,
) -> Plan:
    """Return the plan of a curve: the unchanged model and VTW at each k.

    Parameters
    ----------
    adapter, model_args
        As for ``lmms_eval --model ADAPTER --model_args pretrained=...,...``.
    tasks
        Tasks of lmms-eval or of ours.
    ks
        Numbers of layers that see the image; None takes all below the number of layers.
    limit, batch_size, device, verify
        As in a plan.

    Raises
    ------
    PlanError
        If something of it is not possible.
    """
    with importing("lmms-eval"):
        from lmms_eval.utils import simple_parse_args_string
    if adapter not in ADAPTERS:
        raise PlanError(f"unknown adapter {adapter!r}{suggest(adapter, ADAPTERS)} Valid: {', '.join(ADAPTERS)}.")
    try:
        check_unique_names(model_args)
        given = simple_parse_args_string(model_args)
    except ValueError as error:
        raise PlanError(f"--model-args: {error}") from None
    for name, better in _ELSEWHERE.items():
        if name in given:
            raise PlanError(f"{name} does not belong into --model-args of curve: {better}.")
    pretrained = given.pop("pretrained", None)
    if pretrained is None:
        raise PlanError("--model-args names no checkpoint: pretrained=...; shapes is the embedded one.")
    pretrained = str(pretrained)
    model = {"name": Path(pretrained).name or pretrained, "adapter": adapter, "pretrained": pretrained, "args": given}
    return curve_plan_of(model, tasks, ks, limit=limit, batch_size=batch_size, device=device, verify=verify)


def run_curve(plan: Plan, root: Path, watcher: Watcher, *, keep: bool = False) -> list[Entry]:
    """Evaluate the cells of a curve that are not done yet, and return what the store then holds for them.

    Parameters
    ----------
    plan
        Of :func:`curve_plan`.
    root
        Folder of the store; :func:`divergence_file` are in it, too.
    watcher
        Told what happens.
    keep
        See :func:`vtw_eval.sweep.sweep.run_sweep`, which tells what is raised.
    """
    return run_sweep(plan, root, watcher, keep=keep, execute=execute_curve)


def execute_curve(cells: Sequence[CellSpec], store: Store, settings: Settings, watcher: Watcher) -> None:
    """Evaluate cells of one checkpoint in this process, at all k at once; see :data:`vtw_eval.sweep.sweep.Execute`."""
    with importing("lmms-eval"):
        from vtw_eval.model_adapters.lmms.cells import LmmsModel
        from vtw_eval.model_adapters.lmms.touch_points import TOUCH_POINTS
        from vtw_eval.models.curve import CurveRunner
        from vtw_eval.verify.touch_points import check_touch_points

        check_touch_points(TOUCH_POINTS)
    opened: list[CurveRunner] = []
    methods = [parse_method(spec.method) for spec in cells]
    ks = sorted({method.k for method in methods if isinstance(method, VTW) and isinstance(method.k, int)})

    def load(spec: CellSpec, settings: Settings) -> OpenModel:
        model = LmmsModel(spec, settings, CurveRunner)
        runner = model.model._runner
        runner.ks = tuple(ks)
        opened[:] = [runner]
        return model

    runner, told = CellRunner(store, settings, load), set[str]()
    for spec in cells:
        watcher.started(0, spec)
        cell = runner.run(spec, lambda answered, of: watcher.answered(0, answered, of))
        for curve in opened:
            _keep_divergence(curve.mean_divergence(spec.task), spec.task, store.root)
            for reason in curve.apart - told:
                watcher.note(f"each k is run for itself: {reason}")
            told |= curve.apart
        watcher.finished(0, cell)


def _keep_divergence(found: dict[int, float], task: str, root: Path) -> None:
    """Add what was found to what is known from an earlier start."""
    file = divergence_file(root, task)
    known = dict(read_divergence(file)[1]) if file.is_file() else {}
    if found and known != {**known, **found}:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_divergence(task, {**known, **found}, file)
