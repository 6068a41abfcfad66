"""OpenGVLab's InternVL2 checkpoints with remote code, prompted as VLMEvalKit's ``InternVLChat`` does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vtw_eval.model_adapters.vlmeval.prompts.base import KitFamily, KitPrompt
from vtw_eval.model_adapters.vlmeval.prompts.internvl import InternVLKitOptions, InternVLPrompts
from vtw_eval.models.family import DocumentPrompt
from vtw_eval.models.internvl_remote import MARK, InternVLRemote


class InternVLRemoteKit(InternVLPrompts, InternVLRemote):
    """The checkpoints with remote code under VLMEvalKit."""

    options_class = InternVLKitOptions
    options: InternVLKitOptions

    @property
    def stop_ids(self) -> dict[str, Any]:
        """The end of a turn, as in the remote code's ``chat``."""
        return super(KitFamily, self).stop_ids

    def text_of(self, marked: str, count: int) -> str:
        """Fill in the checkpoint's conversation template."""
        text = marked.replace("<image>", MARK, count)
        return self.render([{"role": "user", "content": [{"type": "text", "text": text}]}])

    def most_tiles(self, prompt: DocumentPrompt) -> int:
        """As the prompt says."""
        return prompt.tiles if isinstance(prompt, KitPrompt) else super().most_tiles(prompt)

    def generation(self, generation: Mapping[str, Any]) -> dict[str, Any]:
        """Greedy, at most 4096 tokens; the remote code always decodes with a cache."""
        arguments = super().generation(generation)
        return {name: value for name, value in arguments.items() if name != "use_cache"}


FAMILY = InternVLRemoteKit
