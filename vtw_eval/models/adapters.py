"""The adapters: which options and which model families belong to which name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vtw_eval.models.family import Family
from vtw_eval.models.internvl import InternVL, InternVLOptions
from vtw_eval.models.internvl_remote import InternVLRemote
from vtw_eval.models.llava import Llava, LlavaOptions
from vtw_eval.models.options import Options
from vtw_eval.models.qwen2_vl import Qwen2VL, QwenOptions
from vtw_eval.models.video_llava import VideoLlava, VideoLlavaOptions


@dataclass(frozen=True)
class Adapter:
    """One name under which a harness finds models."""

    options: type[Options]
    families: tuple[type[Family[Any]], ...]

    def family_of(self, model_type: str) -> type[Family[Any]] | None:
        """Return the family of a ``config.model_type``, None if the adapter has none."""
        return next((family for family in self.families if model_type in family.model_types), None)


ADAPTERS: Mapping[str, Adapter] = {
    "llava_vtw": Adapter(LlavaOptions, (Llava,)),
    "qwen2vl_vtw": Adapter(QwenOptions, (Qwen2VL,)),
    "internvl_vtw": Adapter(InternVLOptions, (InternVL, InternVLRemote)),
    "video_llava_vtw": Adapter(VideoLlavaOptions, (VideoLlava,)),
}
"""Every adapter by its name."""
