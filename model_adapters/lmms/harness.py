"""lmms-eval as a harness of sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from vtw_eval.importing import importing

if TYPE_CHECKING:
    from vtw_eval.methods import Method
    from vtw_eval.models.adapters import Adapter
    from vtw_eval.record.cell import CellSpec
    from vtw_eval.record.store import Store
    from vtw_eval.sweep.harness import OpenModel, Settings
    from vtw_eval.sweep.schedule import Watcher
    from vtw_eval.verify.touch_points import TouchPoint


class LmmsEval:
    """See :class:`vtw_eval.sweep.harness.Harness`."""

    name = "lmms-eval"
    package = "lmms-eval"
    apart = ""

    def adapters(self) -> Mapping[str, Adapter]:
        """Return the adapters; lmms-eval need not be there for that."""
        from vtw_eval.models.adapters import ADAPTERS

        return ADAPTERS

    def refusal(self, method: Method) -> str:
        """Return the empty text: every method works."""
        return ""

    def expand(self, tasks: Sequence[str]) -> list[str]:
        """Return single tasks; lmms-eval is asked only about those that are not ours."""
        from vtw_eval.model_adapters.lmms.names import expand_tasks

        return expand_tasks(tasks)

    def open(self, spec: CellSpec, settings: Settings) -> OpenModel:
        """Load the checkpoint of a cell."""
        with importing(self.package):
            from vtw_eval.model_adapters.lmms.cells import LmmsModel
            from vtw_eval.verify.touch_points import check_touch_points

            check_touch_points(self.touch_points())
        return LmmsModel(spec, settings)

    def execute_curve(self, cells: Sequence[CellSpec], store: Store, settings: Settings, watcher: Watcher) -> None:
        """Evaluate VTW at several k at once."""
        with importing(self.package):
            from vtw_eval.model_adapters.lmms.curve import execute_curve

        execute_curve(cells, store, settings, watcher)

    def code(self, spec: CellSpec) -> dict[str, str]:
        """Return hashes of the adapters, which hold the reading of scores, and of our tasks."""
        from vtw_eval.model_adapters.source import code_of

        return code_of("lmms")

    def touch_points(self) -> Sequence[TouchPoint]:
        """Return what is relied on in lmms-eval without its promise."""
        from vtw_eval.model_adapters.lmms.touch_points import TOUCH_POINTS

        return TOUCH_POINTS
