"""Models of any size without memory: on torch's meta device tensors have shapes and no values.

What a method keeps depends on values. It is recorded in a run on a tiny model with as many layers and the same prompt,
and answered again on the meta device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from vtw_eval.anatomy import find_anatomy
from vtw_eval.cost.bench.subject import llava_config
from vtw_eval.cost.dry_run import IMAGE, SYSTEM, VOCAB, picture, tiny_model
from vtw_eval.cost.geometry import Geometry
from vtw_eval.engine import LayerView, Merge, Reads, Trace
from vtw_eval.engine.view import Look
from vtw_eval.methods import Method
from vtw_eval.methods.wrapped import Wrapped


def meta_model(
    source: Geometry | PreTrainedConfig, *, dtype: torch.dtype = torch.bfloat16, attention: str = "sdpa"
) -> PreTrainedModel:
    """Build a vision-language model on the meta device.

    Parameters
    ----------
    source
        A geometry, which becomes a LLaVA with a Llama decoder of these sizes, or a transformers config.
    dtype
        Type of the weights.
    attention
        Attention implementation.

    Raises
    ------
    ValueError
        If no Llama has the geometry's sizes.
    """
    config = llava_config(source) if isinstance(source, Geometry) else source
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attention)
    if isinstance(source, Geometry):
        model.config._name_or_path = source.name
    return model.eval()


@contextmanager
def meta_method(
    method: Method, model: PreTrainedModel, *, text: int, vision: int, seed: int = 0
) -> Iterator[tuple[Trace, dict[str, Any]]]:
    """Install a method on a model on the meta device, for one prompt.

    The number of tokens in each layer is what the method leaves of this prompt on a tiny random model. The layers that
    a method runs up to their attention to score tokens are run here too, with as many queries as there; what it then
    computes from the scores, such as ToMe's similarities and means, is not.

    Parameters
    ----------
    method
        The method. DyVTE cannot be measured so: its gates belong to a checkpoint.
    model
        Of :func:`meta_model`.
    text, vision
        Tokens of the prompt; the text stands before (35 tokens at most) and after the vision tokens.
    seed
        Of the token ids, from which random methods draw.

    Yields
    ------
    Trace
        Of the method, filled by a run.
    dict
        Keywords for ``model(**inputs)``: a prefill with a KV cache and the logits of the last token.

    Raises
    ------
    ValueError
        With fewer than two text tokens or a negative number of vision tokens; and see :meth:`Method.bind`.
    """
    if text < 2 or vision < 0:
        raise ValueError(f"{text} text and {vision} vision tokens: a prompt needs 2 or more and 0 or more.")
    anatomy = find_anatomy(model)
    ids = torch.randint(VOCAB - 1, (1, text + vision), generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros_like(ids, dtype=torch.bool)
    first = min(SYSTEM, text // 2)
    mask[:, first : first + vision] = True
    bound = method.bind(anatomy)
    choices = _record(bound, anatomy.num_layers, ids, mask)
    embeds = torch.empty(*ids.shape, anatomy.hidden_size, dtype=model.dtype, device="meta")
    with _Replay(method=bound, choices=choices)(model, vision_mask=mask, prompt_ids=ids) as trace:
        trace.method = bound
        yield trace, {"inputs_embeds": embeds, "use_cache": True, "logits_to_keep": 1}


@dataclass(frozen=True)
class _Choice:
    """What a method did at a layer."""

    keep: Tensor
    looks: Sequence[Look]
    """What it read."""


@dataclass(frozen=True, kw_only=True)
class _Choosing(Wrapped):
    """Stands for a method whose choices are noted."""

    choices: dict[int, _Choice] = field(default_factory=dict)


class _Record(_Choosing):
    """Notes what the method does."""

    key: ClassVar[str] = "record"

    def keep(self, view: LayerView) -> Tensor | Merge:
        before = len(view.looks)
        answer = self.method.keep(view)
        keep = answer.keep if isinstance(answer, Merge) else answer
        self.choices[view.layer] = _Choice(keep, view.looks[before:])
        return answer


class _Replay(_Choosing):
    """Does it again."""

    key: ClassVar[str] = "replay"

    def keep(self, view: LayerView) -> Tensor:
        choice = self.choices[view.layer]
        for look in choice.looks:
            if look.what is Reads.HIDDEN:  # products of its own, not done again
                continue
            if look.what is Reads.TOWER:
                view.tower.again(look)
            elif look.what is Reads.KEYS:
                view.keys()
            elif look.what is Reads.KEYS_BEFORE:
                view.keys_before()
            elif look.what is Reads.ROTATED_KEYS:
                view.rotated_keys()
            elif look.what is Reads.VALUES_BEFORE:
                view.values_before()
            elif look.what is Reads.MEAN_QUERY:
                view.mean_query_attention(view.valid, view.valid)
            elif look.what is Reads.UNROTATED_BEFORE:
                view.unrotated_attention(view.vision)
            elif look.queries is None:
                view.attention(look.layer)
            else:  # as many; which ones costs nothing
                view.attention(look.layer, torch.arange(look.slots).expand(view.rows, -1) < look.queries)
        return choice.keep


def _record(method: Method, layers: int, ids: Tensor, vision: Tensor) -> dict[int, _Choice]:
    """Run a method on a tiny model."""
    model = tiny_model(layers)
    record = _Record(method=method)
    with torch.no_grad(), record(model, vision_mask=vision, prompt_ids=ids):
        if Reads.TOWER in method.reads:  # pixels go with ids only
            ids = ids.masked_fill(ids == IMAGE, IMAGE + 1).masked_fill(vision, IMAGE)
            model(input_ids=ids, **picture(method, int(vision.sum())), use_cache=True, logits_to_keep=1)
        else:
            model(inputs_embeds=model.get_input_embeddings()(ids), use_cache=True, logits_to_keep=1)
    return record.choices
