"""Tokenizer, chat template and processor of the shapes model."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

from vtw_eval.shapes.questions import CAPTION_PROMPT, LETTER_PROMPT, SHORT_PROMPT
from vtw_eval.shapes.scenes import COLORS, IMAGE_SIZE, MAX_ITEMS, SHAPES

PATCH_SIZE = 8
"""Pixels per side of a vision patch; an image is 64 vision tokens."""

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

# One rule for both protocols of lmms-eval: `content` is a string (which holds its own <image> placeholders) or a list
# of parts, rendered in their order, each image on a line of its own. The begin token is written here and nowhere else.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ message['role'] | upper + ': ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}"
    "{% else %}{{ raise_exception('the shapes model takes text and image parts, not ' + part['type']) }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ ' ' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the word-level tokenizer: the words of all questions and answers, everything else is ``<unk>``.

    Returns
    -------
    transformers.PreTrainedTokenizerFast
        Pads on the left; adds no special tokens of its own (the chat template writes them).
    """
    split = pre_tokenizers.Split(Regex(_TOKEN), behavior="removed", invert=True)
    words = [*COLORS, *SHAPES, *(str(n) for n in range(MAX_ITEMS + 2))]
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
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def build_processor() -> LlavaProcessor:
    """Build the processor: images to 64x64 pixels in [-1, 1], text with 64 placeholders per image.

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
