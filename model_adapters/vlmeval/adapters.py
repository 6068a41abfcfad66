"""The adapters under VLMEvalKit: the names of :mod:`vtw_eval.models.adapters` with the kit's prompts."""

from __future__ import annotations

from collections.abc import Mapping

from vtw_eval.model_adapters.vlmeval.prompts.internvl import InternVLKit, InternVLKitOptions, InternVLRemoteKit
from vtw_eval.model_adapters.vlmeval.prompts.llava import LlavaKit, LlavaKitOptions
from vtw_eval.model_adapters.vlmeval.prompts.qwen2_vl import Qwen2VLKit, QwenKitOptions
from vtw_eval.model_adapters.vlmeval.prompts.video_llava import VideoLlavaKit, VideoLlavaKitOptions
from vtw_eval.models.adapters import Adapter

KIT_ADAPTERS: Mapping[str, Adapter] = {
    "llava_vtw": Adapter(LlavaKitOptions, (LlavaKit,)),
    "qwen2vl_vtw": Adapter(QwenKitOptions, (Qwen2VLKit,)),
    "internvl_vtw": Adapter(InternVLKitOptions, (InternVLKit, InternVLRemoteKit)),
    "video_llava_vtw": Adapter(VideoLlavaKitOptions, (VideoLlavaKit,)),
}
"""Every adapter by its name."""
