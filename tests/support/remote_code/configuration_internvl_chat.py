"""Configuration of a tiny model with the public interface of OpenGVLab's InternVL2."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig, Qwen2Config


class InternVLChatConfig(PretrainedConfig):
    model_type = "internvl_chat"
    is_composition = True

    def __init__(
        self,
        vision_config: dict[str, Any] | None = None,
        llm_config: dict[str, Any] | None = None,
        template: str = "chatml-tiny",
        downsample_ratio: float = 0.5,
        force_image_size: int = 56,
        max_dynamic_patch: int = 6,
        use_thumbnail: bool = True,
        **kwargs: Any,
    ) -> None:
        self.vision_config = vision_config or {"hidden_size": 32, "image_size": 56, "patch_size": 14}
        self.llm_config = Qwen2Config(**{k: v for k, v in (llm_config or {}).items() if k != "model_type"})
        self.template = template
        self.downsample_ratio = downsample_ratio
        self.force_image_size = force_image_size
        self.max_dynamic_patch = max_dynamic_patch
        self.use_thumbnail = use_thumbnail
        super().__init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        output["llm_config"] = self.llm_config.to_dict()
        return output
