"""What lmms-eval finds through the entry-point group ``lmms_eval.models``; imported at every start, so kept light."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtw_eval.importing import importing

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

_CLASSES = {
    "llava_vtw": "LlavaVTW",
    "qwen2vl_vtw": "Qwen2VLVTW",
    "internvl_vtw": "InternVLVTW",
    "video_llava_vtw": "VideoLlavaVTW",
}


def manifests() -> list[ModelManifest]:
    """Return one manifest per adapter, each with a class for the chat protocol and one for the simple protocol."""
    # lmms-eval reads entry points while it is being imported, so importing it above could meet this module half-made.
    with importing("lmms-eval"):
        from lmms_eval.models.registry_v2 import ModelManifest

    module = "vtw_eval.model_adapters.lmms.models"
    return [
        ModelManifest(name, chat_class_path=f"{module}.{cls}", simple_class_path=f"{module}.{cls}Simple")
        for name, cls in _CLASSES.items()
    ]
