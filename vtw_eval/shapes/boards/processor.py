"""Tokenizer, chat template and processor of the LLaVA that answers about boards."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from transformers import LlavaProcessor, PreTrainedTokenizerFast

from vtw_eval.shapes.boards.questions import NUMBERS, ROWS
from vtw_eval.shapes.boards.scenes import IMAGE_SIZE, MARKS, SIZES
from vtw_eval.shapes.processor import llava_processor, word_tokenizer
from vtw_eval.shapes.questions import CAPTION_PROMPT, LETTER_PROMPT, SHORT_PROMPT
from vtw_eval.shapes.scenes import COLORS, SHAPES

# A benchmark's instruction is one token: it is the same in every prompt, and prompts of real models are short beside
# their images. A newline is a token, as it separates a choice's options.
_INSTRUCTIONS = (SHORT_PROMPT, LETTER_PROMPT)
_SENTENCES = (
    "USER: ASSISTANT: SYSTEM:",
    "Is there a in the image? Is the number of circles squares triangles crosses objects in the image?",
    "How many are there? What color is the object? What shape? What number is on the? In which row column is the?",
    "on the left of, on the right of, above, below, just to",
    "Do the and the have the same? Is there both a and a in the image?",
    "Yes No and A. B. C. D.",
    CAPTION_PROMPT,
)


def build_tokenizer(
    placeholders: Mapping[str, str] | None = None, *instructions: str, sentences: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """Build the tokenizer of the words of all questions and answers.

    Parameters
    ----------
    placeholders
        As in :func:`~vtw_eval.shapes.processor.word_tokenizer`.
    instructions
        More sentences that are one token each.
    sentences
        More sentences whose words are known.
    """
    instructions = (*_INSTRUCTIONS, *instructions)
    pattern = "|".join([*(re.escape(sentence) for sentence in instructions), r"\n", r"\w+", r"[^\w\s]"])
    words = [*COLORS, *SHAPES, *SIZES, *MARKS, *NUMBERS, *ROWS, *instructions, "\n"]
    return word_tokenizer(pattern, words, (*_SENTENCES, *sentences), 2048, placeholders)


def build_processor() -> LlavaProcessor:
    """Build the processor: images to 128x128 pixels in [-1, 1], text with 256 placeholders per image."""
    return llava_processor(build_tokenizer(), IMAGE_SIZE)
