"""The table of adapters: whole, light, and all that a new family has to be written into."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest

from vtw_eval.models.adapters import ADAPTERS, Adapter
from vtw_eval.models.family import Family
from vtw_eval.models.llava import Llava, LlavaOptions
from vtw_eval.models.options import Options


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_adapter_has_families_and_options(name: str) -> None:
    adapter = ADAPTERS[name]
    assert all(issubclass(family, Family) and family.model_types for family in adapter.families)
    assert issubclass(adapter.options, Options)
    assert all(family.options_class is adapter.options for family in adapter.families)
    for model_type in adapter.families[0].model_types:
        assert adapter.family_of(model_type) is adapter.families[0]
    assert adapter.family_of("gpt2") is None


def test_names_and_model_types_are_each_of_one_adapter() -> None:
    model_types = [t for adapter in ADAPTERS.values() for family in adapter.families for t in family.model_types]
    assert len(model_types) == len(set(model_types)) > len(ADAPTERS)
    assert len({adapter.class_name for adapter in ADAPTERS.values()}) == len(ADAPTERS)


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_kits_adapters_are_ours_with_its_prompts(name: str) -> None:
    pytest.importorskip("vlmeval")
    from vtw_eval.model_adapters.vlmeval.adapters import KIT_ADAPTERS
    from vtw_eval.model_adapters.vlmeval.models import CLASSES
    from vtw_eval.model_adapters.vlmeval.prompts.base import KitFamily, KitOptions

    core, kit = ADAPTERS[name], KIT_ADAPTERS[name]
    assert len(kit.families) == len(core.families)
    for family, ours in zip(kit.families, core.families, strict=True):
        assert issubclass(family, KitFamily) and issubclass(family, ours)
        assert family.options_class is kit.options
    assert issubclass(kit.options, KitOptions) and issubclass(kit.options, core.options)
    assert CLASSES[name].__name__ == core.class_name


def test_a_family_is_added_by_its_module_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lmms_eval")
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    from vtw_eval.model_adapters.lmms import manifest, models

    class New(Llava):
        model_types = frozenset({"new"})

    module = types.ModuleType("new_family")
    module.FAMILY = New  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "new_family", module)
    table = {**ADAPTERS, "new_vtw": Adapter("NewVTW", ("new_family",))}
    assert table["new_vtw"].family_of("new") is New
    assert table["new_vtw"].options is LlavaOptions
    for user in (manifest, models):
        monkeypatch.setattr(user, "ADAPTERS", table)
    for simple in (False, True):
        made = models.model_class("new_vtw", simple=simple)
        monkeypatch.setattr(models, made.__name__, made, raising=False)  # as when the module is imported
    registry = ModelRegistryV2()
    for entry in manifest.manifests():
        registry.register_manifest(entry)
    for simple in (False, True):
        found = registry.get_model_class("new_vtw", force_simple=simple)
        assert (found.adapter, found.is_simple) == ("new_vtw", simple)


def test_a_family_without_prompts_of_the_kit_is_no_adapter_there() -> None:
    pytest.importorskip("vlmeval")
    from vtw_eval.model_adapters.vlmeval.adapters import _with_prompts

    assert _with_prompts(Adapter("NewVTW", ("vtw_eval.models.new",))).modules == ()


def test_names_are_known_without_torch() -> None:
    code = "from vtw_eval.models.adapters import ADAPTERS; import sys; print(*ADAPTERS, 'torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == [*ADAPTERS, "False"]
