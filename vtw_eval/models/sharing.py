"""Questions about the same images: which of them share the pass over what they begin with, and how."""

from __future__ import annotations

import hashlib
import os.path
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtw_eval.anatomy import Anatomy
from vtw_eval.engine import Reads
from vtw_eval.engine.masks import MaskKind, mask_kind
from vtw_eval.families import BIDIRECTIONAL
from vtw_eval.methods import Method
from vtw_eval.models.family import DocumentPrompt, Family
from vtw_eval.models.weights import bits

_PLAIN = {
    *("max_new_tokens", "max_length", "use_cache", "do_sample", "temperature", "top_p", "top_k", "num_beams"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "trust_remote_code"),
}
"""What a generation config may say that changes nothing in greedy decoding but its end."""

_REPEATS = "repetition_penalty"
"""A logits processor that needs rows of their own, but sees the same tokens in them as alone."""


class SharingError(Exception):
    """Prompts cannot share what they begin with; the message says why."""


def why_alone(family: Family[Any], anatomy: Anatomy, method: Method, arguments: Mapping[str, Any]) -> str:
    """Return why no prompts can share a prefix, empty if they can.

    Parameters
    ----------
    family, anatomy
        The model.
    method
        What is installed.
    arguments
        Of ``generate``.
    """
    if family.auto_class == "AutoModel":
        return "code that comes with a checkpoint generates from embeddings"
    if anatomy.model_type in BIDIRECTIONAL:
        return f"tokens of {anatomy.model_type} see some that follow them"
    if not anatomy.plain_cache:
        return f"{anatomy.model_type} keeps more of a prompt than keys and values, or shares them between layers"
    if not method.question_independent and Reads.TOWER in method.reads:
        return f"what {method} removes may depend on the question, and on what the vision tower makes of each prompt"
    if not method.question_independent and method.frozen_layers(anatomy.num_layers):
        return f"{method} leaves vision tokens of whole prompts as they are"
    if family.options.batch_size == 1 and not family.exact:
        how = "in half precision" if bits(family.model) is None else "with quantized weights"
        return f"{how} it would round otherwise, as batches do: batch_size=2 or more allows both"
    if not arguments["use_cache"]:
        return "without a KV cache nothing is kept of a prefix"
    if arguments["do_sample"]:
        return "samples are drawn for a batch as a whole"
    if arguments["num_beams"] != 1:
        return "beams go on in rows of their own"
    if odd := told_by_config(family) - {_REPEATS}:
        return f"the checkpoint's generation config sets {', '.join(sorted(odd))}"
    return ""


def told_by_config(family: Family[Any]) -> set[str]:
    """Return what the generation config sets beside what greedy decoding takes."""
    told = family.model.generation_config.to_diff_dict()
    said = {name for name, value in told.items() if value not in (None, False) and not name.startswith("_")}
    return said - _PLAIN - ({_REPEATS} if told.get(_REPEATS) == 1 else set())


def packing(family: Family[Any], anatomy: Anatomy) -> MaskKind | None:
    """Return the kind of mask by which questions are told apart in one row, None where each needs a row of its own."""
    kind = mask_kind(anatomy.attention)
    windows = any(anatomy.sliding_window(layer) is not None for layer in range(anatomy.num_layers))
    mixed = len(set(getattr(anatomy.text_config, "layer_types", None) or ())) > 1
    return None if kind == "validity" or windows or mixed or told_by_config(family) else kind


def fits_windows(anatomy: Anatomy, tokens: int) -> bool:
    """Whether no sliding window is shorter than a sequence: gaps in rows would count in it."""
    windows = (anatomy.sliding_window(layer) for layer in range(anatomy.num_layers))
    return all(window is None or tokens <= window for window in windows)


def digest(prompt: DocumentPrompt) -> bytes:
    """Return a hash of what a prompt shows: the pixels of its images, the places of its videos, and how.

    Empty for a prompt that shows nothing.
    """
    if not prompt.images and not prompt.video_count:
        return b""
    found = hashlib.blake2b(digest_size=16)
    for image in prompt.images:
        about = (image.mode, image.size, sorted((k, v) for k, v in image.info.items() if k == "transparency"))
        found.update(repr(about).encode())
        found.update(image.tobytes())
        found.update(repr(image.getpalette() if image.mode == "P" else None).encode())
    for video in prompt.videos:
        found.update(repr((os.path.realpath(video), os.path.getsize(video))).encode())
    for part in prompt.beside():
        found.update(part)
    return found.digest()


@dataclass(frozen=True)
class Split:
    """Prompts that show the same, cut into what they begin with and what is their own."""

    length: int
    """Tokens that they have in common."""
    own: list[list[int]]
    """What each of them has beside, one token or more."""

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return self.length + max(map(len, self.own))


def split(rows: Sequence[list[int]], vision: frozenset[int]) -> Split | None:
    """Cut prompts behind their longest common beginning.

    Parameters
    ----------
    rows
        Token ids of the prompts.
    vision
        Ids of vision tokens.

    Returns
    -------
    Split or None
        None if a vision token, or the text token behind the last one, is not in common.
    """
    one, other = min(rows), max(rows)  # what these two begin with, all between them do
    shortest = min(map(len, rows)) - 1
    common = next((i for i in range(shortest) if one[i] != other[i]), shortest)
    needed = 2 + max((i for i, id_ in enumerate(one) if id_ in vision), default=-1)
    if common < needed or any(not vision.isdisjoint(row[common:]) for row in rows):
        return None
    return Split(common, [row[common:] for row in rows])


def ids_of(
    family: Family[Any], first: Sequence[int], texts: Sequence[str], vision: frozenset[int]
) -> list[list[int]] | None:
    """Return the token ids of prompts that show the same, from those of the first one.

    The processor is spared: images become tokens once, and the texts behind them by the tokenizer alone.

    Parameters
    ----------
    family
        The model's.
    first
        Token ids of the first prompt as the processor made them, without padding.
    texts
        Of all prompts, the first one's too.
    vision
        Ids of vision tokens.

    Returns
    -------
    list of list of int, or None
        None if the prompts differ in front of their last image or video, or the tokenizer tells something else than
        the processor.
    """
    raw = [list(map(int, ids)) for ids in family.tokenizer(list(texts))["input_ids"]]
    behind = len(first) - 1 - max((i for i, id_ in enumerate(first) if id_ in vision), default=-1)
    most = min(behind, len(raw[0]))
    same = next((n for n in range(most) if first[len(first) - 1 - n] != raw[0][len(raw[0]) - 1 - n]), most)
    head, begin = list(first[: len(first) - same]), raw[0][: len(raw[0]) - same]
    if not same or any(row[: len(begin)] != begin or vision & set(row[len(begin) :]) for row in raw):
        return None
    return [head + row[len(begin) :] for row in raw]


def prefix_inputs(inputs: Mapping[str, Any], lengths: Sequence[int]) -> dict[str, Any]:
    """Return the encoded beginnings of encoded prompts, padded on the left.

    Parameters
    ----------
    inputs
        Of whole prompts, padded on the left; media are those of the beginnings.
    lengths
        Tokens of each beginning.
    """
    mask: Tensor = inputs["attention_mask"]
    width = max(lengths)
    starts = mask.shape[1] - mask.sum(dim=1, keepdim=True)
    takes = torch.tensor(lengths, device=mask.device)[:, None]
    places = torch.arange(width, device=mask.device) - (width - takes)
    index = (starts + places).clamp(min=0)
    made = dict(inputs)
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.shape == mask.shape:
            # In front of the beginning stands its own last token, hidden by the mask: what looks at ids sees no other.
            filler = value.gather(1, starts + takes - 1) if name == "input_ids" else torch.zeros_like(value[:, :1])
            made[name] = torch.where(places >= 0, value.gather(1, index), filler)
    return made


def stop_ids(arguments: Mapping[str, Any]) -> tuple[list[int], int]:
    """Return the ids that end an answer, and the one behind it, as ``generate`` takes them."""
    eos = arguments["eos_token_id"]
    ends = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    pad = arguments.get("pad_token_id")
    return ends, (ends[0] if ends else 0) if pad is None else pad
