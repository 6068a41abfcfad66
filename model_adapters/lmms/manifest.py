"""What lmms-eval finds through the entry-point group ``lmms_eval.models``; imported at every start, so kept light."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtw_eval.importing import importing
from vtw_eval.models.adapters import ADAPTERS

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


def manifests() -> list[ModelManifest]:
    """Return one manifest per adapter, each with a class for the chat protocol and one for the simple protocol."""
    # lmms-eval reads entry points while it is being imported, so importing it above could meet this module half-made.
    with importing("lmms-eval"):
        from lmms_eval.models.registry_v2 import ModelManifest

    module = "vtw_eval.model_adapters.lmms.models"
    return [
        ModelManifest(
            name,
            chat_class_path=f"{module}.{adapter.class_name}",
            simple_class_path=f"{module}.{adapter.class_name}Simple",
        )
        for name, adapter in ADAPTERS.items()
    ]
