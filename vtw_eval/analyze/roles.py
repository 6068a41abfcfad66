"""Kinds of tokens and of pairs of them, as the papers name them.

VTW (Sec. "Motivations", Eq. 2, https://arxiv.org/abs/2405.05803) has prompts of system, vision, instruction and output
tokens, in this order. Prompts with several images, or with line breaks among the tokens of one, have text between
vision tokens besides, which stands as a role of its own here.

DyVTE (Fig. 3, https://arxiv.org/abs/2411.19628) has three kinds of attention: among image tokens, from text to image,
among text tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtw_eval.engine.layout import Prompt

ROLES = ("system", "vision", "between", "instruction", "output")
"""Of a token: text before the first vision token; vision; text between vision tokens; text behind them; generated."""
SYSTEM, VISION, BETWEEN, INSTRUCTION, OUTPUT = range(len(ROLES))
FIRST = "first token"
"""The first token of the prompt, which is one of the system's where there are any: where an attention sink is looked
for."""

KINDS = ("image self", "cross", "text self")
"""Of a pair of query and key, both of the prompt: image and image; text and image; text and text."""
IMAGE_SELF, CROSS, TEXT_SELF = range(len(KINDS))


def roles(prompt: Prompt) -> Tensor:
    """Return the role of each token of one prompt, long ``[tokens]``, -1 for padding.

    Raises
    ------
    ValueError
        If the prompt shows nothing, or is not one.
    """
    if len(prompt.valid) != 1:
        raise ValueError("one prompt at a time can be analysed.")
    vision, valid = prompt.vision[0], prompt.valid[0]
    if not bool(vision.any()):
        raise ValueError("the prompt shows no picture or video: there is no attention to one.")
    begun, over = vision.cumsum(dim=0) > 0, prompt.instruction[0]
    found = torch.where(begun, BETWEEN, SYSTEM)
    found = torch.where(over, INSTRUCTION, found)
    found = torch.where(valid & ~prompt.given[0], OUTPUT, found)
    found = torch.where(vision, VISION, found)
    return torch.where(valid, found, -1)
