"""Tokenizer and processor of the Video-LLaVA that answers about moves."""

from __future__ import annotations

from typing import Any

from tokenizers.processors import TemplateProcessing
from transformers import (
    PreTrainedTokenizerFast,
    VideoLlavaImageProcessor,
    VideoLlavaProcessor,
    VideoLlavaVideoProcessor,
)

from vtw_eval.shapes.boards import processor as boards
from vtw_eval.shapes.moves.questions import VERBS
from vtw_eval.shapes.moves.scenes import DIRECTIONS
from vtw_eval.shapes.processor import IMAGE_TOKEN
from vtw_eval.shapes.scenes import CELL, IMAGE_SIZE

PATCH = CELL
"""Pixels per side of a patch: a cell."""
VIDEO_TOKEN = "<video>"
_SENTENCES = (
    "What color shape is the object that? What does the do? In which direction does the move?",
    "How many times does the blink? Does the before the? Is there a in the video?",
    " ".join((*VERBS, *VERBS.values(), *DIRECTIONS)),
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer: the words about boards, those about moves; begins a prompt with the begin token itself."""
    tokenizer = boards.build_tokenizer({"image_token": IMAGE_TOKEN, "video_token": VIDEO_TOKEN}, sentences=_SENTENCES)
    begin = str(tokenizer.bos_token)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.bos_token_id)]
    )
    return tokenizer


def build_processor() -> VideoLlavaProcessor:
    """Build the processor: frames and images of 64 x 64 pixels in [-1, 1], 17 placeholders a frame, 16 an image."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    scaled: dict[str, Any] = {
        "size": size,
        "crop_size": size,
        "do_center_crop": False,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    return VideoLlavaProcessor(
        image_processor=VideoLlavaImageProcessor(**scaled),
        video_processor=VideoLlavaVideoProcessor(**scaled),
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's class token, which "default" drops of images
    )
