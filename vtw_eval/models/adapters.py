"""The adapters: the names under which harnesses find models, each with its options and its model families.

A family is added by a line here and its module; VLMEvalKit's prompts for it are a module of the same name in
``model_adapters/vlmeval/prompts``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vtw_eval.models.family import Family
    from vtw_eval.models.options import Options


@dataclass(frozen=True)
class Adapter:
    """One name under which a harness finds models.

    Parameters
    ----------
    class_name
        Name of the adapter's class in a harness.
    modules
        Modules of its families, each with one as ``FAMILY``; the first one's options are the adapter's. They are
        imported when first asked for: lmms-eval reads the names at every start, when torch is not loaded yet.
    """

    class_name: str
    modules: tuple[str, ...]

    @cached_property
    def families(self) -> tuple[type[Family[Any]], ...]:
        """The model families."""
        return tuple(import_module(module).FAMILY for module in self.modules)

    @property
    def options(self) -> type[Options]:
        """Type of the options."""
        return self.families[0].options_class

    def family_of(self, model_type: str) -> type[Family[Any]] | None:
        """Return the family of a ``config.model_type``, None if the adapter has none."""
        return next((family for family in self.families if model_type in family.model_types), None)


ADAPTERS: Mapping[str, Adapter] = {
    "llava_vtw": Adapter("LlavaVTW", ("vtw_eval.models.llava",)),
    "qwen2vl_vtw": Adapter("Qwen2VLVTW", ("vtw_eval.models.qwen2_vl",)),
    "internvl_vtw": Adapter("InternVLVTW", ("vtw_eval.models.internvl", "vtw_eval.models.internvl_remote")),
    "video_llava_vtw": Adapter("VideoLlavaVTW", ("vtw_eval.models.video_llava",)),
}
"""Every adapter by its name."""
