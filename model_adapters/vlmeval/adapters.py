"""The adapters under VLMEvalKit: those of :mod:`vtw_eval.models.adapters` for whose families there are prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec

from vtw_eval.model_adapters.vlmeval import prompts
from vtw_eval.models.adapters import ADAPTERS, Adapter


def _with_prompts(adapter: Adapter) -> Adapter:
    """Return an adapter with the modules of the same names in ``prompts``, as far as there are any."""
    named = [f"{prompts.__name__}.{module.rpartition('.')[2]}" for module in adapter.modules]
    return replace(adapter, modules=tuple(name for name in named if find_spec(name) is not None))


KIT_ADAPTERS: Mapping[str, Adapter] = {
    name: adapter for name, core in ADAPTERS.items() if (adapter := _with_prompts(core)).modules
}
"""Every adapter by its name."""
