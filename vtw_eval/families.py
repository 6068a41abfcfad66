"""Which families of vision-language models are tested, and which are refused, by ``config.model_type``.

A family that stands nowhere here, such as one of a newer transformers, is untested: refused unless the caller says
``allow_untested=True``. ``results/families.md`` lists every family of the installed transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Standing = Literal["tested", "decoder tested", "refused", "untested"]

TESTED: frozenset[str] = frozenset(
    {
        "aya_vision",
        "cohere2_vision",
        "gemma3",
        "glm4v",
        "idefics3",
        "internvl",
        "internvl_chat",
        "llava",
        "llava_next",
        "llava_onevision",
        "mistral3",
        "paligemma",
        "qwen2_5_vl",
        "qwen2_vl",
        "qwen3_vl",
        "qwen3_vl_moe",
        "smolvlm",
        "video_llava",
        "vipllava",
    }
)
"""Families that the test-suite compares with the masking oracle, vision towers and all."""

DECODER_TESTED: frozenset[str] = frozenset(
    {
        "aria",
        "cosmos3_edge",
        "cosmos3_omni",
        "deepseek_vl",
        "exaone4_5",
        "fuyu",
        "gemma4",
        "gemma4_unified",
        "glm46v",
        "glm4v_moe",
        "glm_ocr",
        "glmga",
        "got_ocr2",
        "hyperclovax_vision_v2",
        "kimi_k25",
        "lfm2_vl",
        "lfm3_vl",
        "lighton_ocr",
        "llava_next_video",
        "ovis2",
        "paddleocr_vl",
        "pp_chart2table",
        "qianfan_ocr",
        "qwen3_5",
        "qwen3_5_moe",
        "video_llama_3",
    }
)
"""Those whose decoders are compared with it, and of whose vision towers nothing is tested: no method may read them."""

_ENCODER = "its decoder attends to an encoder: there are no vision tokens in it"
_CROSS = "its vision features enter by cross-attention: there are no vision tokens in the decoder"
_DISTANCE = "its attention computes relative distances itself, from the length of what it gets"

REFUSED: Mapping[str, str] = {
    "blip": _CROSS,
    "diffusion_gemma": "it makes blocks of an answer by diffusion, not one token after the other",
    "evolla": "it reads proteins, not images",
    "florence2": _ENCODER,
    "gemma3n": "its layers carry four streams side by side, and the last ones share keys of earlier ones",
    "git": "its image features stand in front of the prompt, where no token marks them",
    "idefics": _CROSS,
    "inkling2": _DISTANCE,
    "inkling2_loop": _DISTANCE,
    "inkling_mm_model": "its attention convolves keys and values of neighbouring tokens, and adds distances of its own",
    "llama4": "its attention computes positions from the sequence length",
    "mistral4": "it is a text-only model",
    "mllama": _CROSS,
    "pi0": "it gives the actions of a robot, not text",
    "pix2struct": _ENCODER,
    "pp_formulanet": _ENCODER,
    "shieldgemma2": "it classifies images, and answers nothing",
    "t5gemma2": _ENCODER,
    "udop": _ENCODER,
    "unlimited_ocr": "its KV cache tells the prompt from the answer by its length and keeps a window of the latter",
    "vision-encoder-decoder": _ENCODER,
}
"""Families for which withdrawal is not defined or not right, with the reason."""

FULL = "full_attention"
RECURRENT: frozenset[str] = frozenset({"conv", "linear_attention"})
"""What a config calls layers that mix tokens by a recurrence or a convolution. Of removed tokens such a layer sees
nothing, as if the prompt had been written without them; no mask says that."""

LAYERS: frozenset[str] = RECURRENT | {FULL, "sliding_attention"}
"""What a config may call layers from which tokens can be removed."""

BIDIRECTIONAL: frozenset[str] = frozenset({"gemma3", "gemma4", "gemma4_unified", "paligemma"})
"""Families whose vision tokens see each other in both directions, in all or in some checkpoints."""


def standing(model_type: str) -> Standing:
    """Return what is known of a family."""
    if model_type in REFUSED:
        return "refused"
    if model_type in TESTED:
        return "tested"
    return "decoder tested" if model_type in DECODER_TESTED else "untested"
