"""Tiny model with the public interface of OpenGVLab's InternVL2: extract_feature, chat and generate by embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Qwen2ForCausalLM

from .configuration_internvl_chat import InternVLChatConfig
from .conversation import get_conv_template


class InternVLChatModel(PreTrainedModel):
    config_class = InternVLChatConfig
    main_input_name = "pixel_values"
    _supports_sdpa = True

    def __init__(self, config: InternVLChatConfig) -> None:
        super().__init__(config)
        vision = config.vision_config
        side = config.force_image_size // vision["patch_size"]
        self.num_image_token = int(side**2 * config.downsample_ratio**2)
        self.template = config.template
        self.vision_model = nn.Conv2d(3, vision["hidden_size"], vision["patch_size"], vision["patch_size"])
        self.shrink = nn.AvgPool2d(int(1 / config.downsample_ratio))
        self.mlp1 = nn.Linear(vision["hidden_size"], config.llm_config.hidden_size)
        self.language_model: Any = Qwen2ForCausalLM(config.llm_config)
        self.img_context_token_id: int | None = None
        self.conv_template = get_conv_template(self.template)
        self.system_message = self.conv_template.system_message
        self.post_init()

    def extract_feature(self, pixel_values: Tensor) -> Tensor:
        features = self.shrink(self.vision_model(pixel_values))
        return self.mlp1(features.flatten(2).transpose(1, 2))

    def chat(
        self,
        tokenizer: Any,
        pixel_values: Tensor | None,
        question: str,
        generation_config: dict[str, Any],
        history: None = None,
        return_history: bool = False,
        num_patches_list: list[int] | None = None,
        verbose: bool = False,
    ) -> Any:
        if history is None and pixel_values is not None and "<image>" not in question:
            question = "<image>\n" + question
        if num_patches_list is None:
            num_patches_list = [pixel_values.shape[0]] if pixel_values is not None else []
        self.img_context_token_id = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
        template = get_conv_template(self.template)
        template.system_message = self.system_message
        template.append_message(template.roles[0], question)
        template.append_message(template.roles[1], None)
        query = template.get_prompt()
        for patches in num_patches_list:
            query = query.replace("<image>", "<img>" + "<IMG_CONTEXT>" * self.num_image_token * patches + "</img>", 1)
        inputs = tokenizer(query, return_tensors="pt")
        output = self.generate(
            pixel_values=pixel_values,
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            **dict(generation_config, eos_token_id=tokenizer.convert_tokens_to_ids(template.sep.strip())),
        )
        response = tokenizer.batch_decode(output, skip_special_tokens=True)[0].split(template.sep.strip())[0].strip()
        return (response, [(question, response)]) if return_history else response

    @torch.no_grad()
    def generate(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **generate_kwargs: Any,
    ) -> Tensor:
        assert self.img_context_token_id is not None
        embeddings = self.language_model.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            features = self.extract_feature(pixel_values)
            selected = input_ids == self.img_context_token_id
            embeddings = embeddings.clone()
            embeddings[selected] = features.reshape(-1, features.shape[-1]).to(embeddings.dtype)
        return self.language_model.generate(
            inputs_embeds=embeddings, attention_mask=attention_mask, use_cache=True, **generate_kwargs
        )
