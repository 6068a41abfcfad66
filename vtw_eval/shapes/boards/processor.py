"""Tokenizer, chat template and processor of the LLaVA that answers about boards."""

from __future__ import annotations

import re

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

from vtw_eval.shapes.boards.questions import NUMBERS, ROWS
from vtw_eval.shapes.boards.scenes import IMAGE_SIZE, MARKS, SIZES
from vtw_eval.shapes.processor import CHAT_TEMPLATE, IMAGE_TOKEN, SPECIAL
from vtw_eval.shapes.questions import CAPTION_PROMPT, LETTER_PROMPT, SHORT_PROMPT
from vtw_eval.shapes.scenes import COLORS, SHAPES

PATCH_SIZE = 8
"""Pixels per side of a vision patch; an image is 256 vision tokens."""

# A benchmark's instruction is one token: it is the same in every prompt, and prompts of real models are short beside
# their images. A newline is a token, as it separates a choice's options.
_INSTRUCTIONS = (SHORT_PROMPT, LETTER_PROMPT)
_TOKEN = "|".join([*(re.escape(sentence) for sentence in _INSTRUCTIONS), r"\n", r"\w+", r"[^\w\s]"])
_SENTENCES = (
    "USER: ASSISTANT: SYSTEM:",
    "Is there a in the image? Is the number of circles squares triangles crosses objects in the image?",
    "How many are there? What color is the object? What shape? What number is on the? In which row column is the?",
    "on the left of, on the right of, above, below, just to",
    "Do the and the have the same? Is there both a and a in the image?",
    "Yes No and A. B. C. D.",
    CAPTION_PROMPT,
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the word-level tokenizer: the words of all questions and answers, everything else is ``<unk>``.

    Returns
    -------
    transformers.PreTrainedTokenizerFast
        Pads on the left; adds no special tokens of its own (the chat template writes them).
    """
    split = pre_tokenizers.Split(Regex(_TOKEN), behavior="removed", invert=True)
    words = [*COLORS, *SHAPES, *SIZES, *MARKS, *NUMBERS, *ROWS, *_INSTRUCTIONS, "\n"]
    for sentence in _SENTENCES:
        words += [word for word, _ in split.pre_tokenize_str(sentence)]
    tokens = [*SPECIAL.values(), IMAGE_TOKEN, *dict.fromkeys(words)]
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token=SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = split
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **SPECIAL,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def build_processor() -> LlavaProcessor:
    """Build the processor: images to 128x128 pixels in [-1, 1], text with 256 placeholders per image.

    Returns
    -------
    transformers.LlavaProcessor
        Saved next to the weights; ``AutoProcessor.from_pretrained`` loads it.
    """
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = CLIPImageProcessor(
        size=size, crop_size=size, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's class token, which "default" drops
        chat_template=CHAT_TEMPLATE,
    )
