"""Tokenizer, chat template and processor of the shapes model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

from vtw_eval.shapes.questions import CAPTION_PROMPT, LETTER_PROMPT, SHORT_PROMPT
from vtw_eval.shapes.scenes import COLORS, IMAGE_SIZE, MAX_ITEMS, SHAPES

PATCH_SIZE = 8
"""Pixels per side of a vision patch."""

SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
IMAGE_TOKEN = "<image>"

_TOKEN = r"\n|\w+|[^\w\s]"  # a newline is a token, as it separates a choice's options
_SENTENCES = (
    "USER: ASSISTANT: SYSTEM:",
    "Is there a in the image? Is the number of objects in the image? Is the? How many objects are there in the image?",
    "What color is the? What shape is the object?",
    "Yes No and A. B. C. D.",
    CAPTION_PROMPT + SHORT_PROMPT + LETTER_PROMPT,
)


def chat_template(image: str, beginning: str = "") -> str:
    """Return a chat template: turns of ``USER: `` and ``ASSISTANT: ``, each image on a line of its own.

    One rule for both protocols of lmms-eval: ``content`` is a string (which holds its own placeholders) or a list of
    parts, rendered in their order. The begin token is written here and nowhere else.

    Parameters
    ----------
    image
        What stands for an image.
    beginning
        Part of the template between the begin token and the first turn.
    """
    return (
        "{{ bos_token }}" + beginning + "{% for message in messages %}"
        "{{ message['role'] | upper + ': ' }}"
        "{% if message['content'] is string %}{{ message['content'] }}"
        "{% else %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}{{ '" + image + "\n' }}"
        "{% elif part['type'] == 'text' %}{{ part['text'] }}"
        "{% else %}{{ raise_exception('the shapes model takes text and image parts, not ' + part['type']) }}{% endif %}"
        "{% endfor %}{% endif %}"
        "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ ' ' }}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    )


CHAT_TEMPLATE = chat_template(IMAGE_TOKEN)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer of the words of all questions and answers, see :func:`word_tokenizer`."""
    words = [*COLORS, *SHAPES, *(str(n) for n in range(MAX_ITEMS + 2))]
    return word_tokenizer(_TOKEN, words, _SENTENCES, 1024)


def build_processor() -> LlavaProcessor:
    """Build the processor: images to 64x64 pixels in [-1, 1], text with 64 placeholders per image."""
    return llava_processor(build_tokenizer(), IMAGE_SIZE)


def word_tokenizer(
    pattern: str,
    words: Sequence[str],
    sentences: Sequence[str],
    longest: int,
    placeholders: Mapping[str, str] | None = None,
) -> PreTrainedTokenizerFast:
    """Build a word-level tokenizer; everything that it does not know is ``<unk>``.

    Parameters
    ----------
    pattern
        Regular expression of a token.
    words, sentences
        What it knows.
    longest
        Most tokens of a prompt.
    placeholders
        Special tokens for images and what belongs to them, by the names that the processor has for them; None means
        those of a LLaVA.

    Returns
    -------
    transformers.PreTrainedTokenizerFast
        Pads on the left; adds no special tokens of its own (the chat template writes them).
    """
    placeholders = {"image_token": IMAGE_TOKEN} if placeholders is None else dict(placeholders)
    split = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    known = list(words)
    for sentence in sentences:
        known += [word for word, _ in split.pre_tokenize_str(sentence)]
    tokens = [*SPECIAL.values(), *placeholders.values(), *dict.fromkeys(known)]
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token=SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = split
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **SPECIAL,
        extra_special_tokens=placeholders,
        padding_side="left",
        model_max_length=longest,
        clean_up_tokenization_spaces=False,
    )


def llava_processor(tokenizer: PreTrainedTokenizerFast, image_size: int) -> LlavaProcessor:
    """Build a processor: images to squares of pixels in [-1, 1], text with a placeholder for each patch.

    Parameters
    ----------
    tokenizer
        From :func:`word_tokenizer`.
    image_size
        Pixels per side of an image.

    Returns
    -------
    transformers.LlavaProcessor
        Saved next to the weights; ``AutoProcessor.from_pretrained`` loads it.
    """
    size = {"height": image_size, "width": image_size}
    images = CLIPImageProcessor(
        size=size, crop_size=size, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's class token, which "default" drops
        chat_template=CHAT_TEMPLATE,
    )
