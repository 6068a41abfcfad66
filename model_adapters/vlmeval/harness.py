"""VLMEvalKit as a harness of sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from vtw_eval.importing import importing

if TYPE_CHECKING:
    from vtw_eval.methods import Method
    from vtw_eval.models.adapters import Adapter
    from vtw_eval.record.cell import CellSpec
    from vtw_eval.sweep.harness import OpenModel, Settings
    from vtw_eval.verify.touch_points import TouchPoint


class Kit:
    """See :class:`vtw_eval.sweep.harness.Harness`."""

    name = "vlmevalkit"
    package = "ms-vlmeval"
    apart = "VLMEvalKit asks one question at a time"

    def adapters(self) -> Mapping[str, Adapter]:
        """Return the adapters, whose options the kit's prompts add to."""
        with importing(self.package):
            from vtw_eval.model_adapters.vlmeval.adapters import KIT_ADAPTERS

            for adapter in KIT_ADAPTERS.values():
                adapter.options  # noqa: B018  # imported when asked for: here errors are explained
        return KIT_ADAPTERS

    def refusal(self, method: Method) -> str:
        """Return why a search cannot run here; empty for other methods."""
        if method.search is None:
            return ""
        return "k=search does not work with VLMEvalKit, which asks one question at a time: find k with search-k."

    def expand(self, tasks: Sequence[str]) -> list[str]:
        """Return single datasets."""
        with importing(self.package):
            from vtw_eval.model_adapters.vlmeval.names import expand_datasets
        return expand_datasets(tasks)

    def open(self, spec: CellSpec, settings: Settings) -> OpenModel:
        """Load the checkpoint of a cell."""
        with importing(self.package):
            from vtw_eval.model_adapters.vlmeval.cells import KitModel
            from vtw_eval.verify.touch_points import check_touch_points

            check_touch_points(self.touch_points())
        return KitModel(spec, settings)

    def code(self, spec: CellSpec) -> dict[str, str]:
        """Return hashes of the adapters, which hold the reading of scores, and of our datasets."""
        from vtw_eval.model_adapters.source import code_of

        return code_of("vlmeval")

    def touch_points(self) -> Sequence[TouchPoint]:
        """Return what is relied on in VLMEvalKit without its promise."""
        from vtw_eval.model_adapters.vlmeval.touch_points import TOUCH_POINTS

        return TOUCH_POINTS
