"""One prompt with its answer through a model, its attention read on the way.

A generation runs the prompt, and then one token after another on a KV cache. Here the prompt and the answer that was
generated run in one pass without a cache: under causal attention each token of the answer then sees what it saw, and
pays the same attention. That the pass predicts the tokens of the answer is counted, as a check.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtw_eval.analyze.roles import roles
from vtw_eval.analyze.sums import LayerNumbers, layer_numbers
from vtw_eval.engine import Entering, install
from vtw_eval.engine.calls import parameters
from vtw_eval.methods import Method
from vtw_eval.models.family import Encoded, Family
from vtw_eval.models.requests import answer_lengths


@dataclass(frozen=True)
class Reading:
    """The attention of a model on one prompt and its answer."""

    layers: tuple[LayerNumbers, ...]
    """One for each decoder layer."""
    tokens: int
    """Of the answer, end of sequence included."""
    predicted: int
    """How many of them the pass gives the highest probability."""
    counts: tuple[int, ...]
    """How many tokens of each role there are."""


@torch.inference_mode()
def read(family: Family[Any], method: Method, encoded: Encoded, generation: Mapping[str, Any]) -> Reading:
    """Answer a prompt under a method, and read the attention of each layer.

    Parameters
    ----------
    family
        The model.
    method
        What is installed; the unchanged model is a method, too.
    encoded
        One prompt.
    generation
        Arguments of the generation, as tasks have them.

    Raises
    ------
    ValueError
        If the prompt shows nothing, the model runs code of its own, or its attention cannot be read.
    UpstreamChangedError
        If a layer was not seen, or weights do not sum to one.
    """
    if encoded.vision_mask is not None:
        raise ValueError(
            f"{family.model_type} checkpoints run code of their own, which answers no prompt together with its answer: "
            "take the checkpoint in transformers' format."
        )
    arguments = family.generation(generation)
    ids = encoded.inputs["input_ids"]
    if len(ids) != 1:
        raise ValueError("one prompt at a time can be analysed.")
    with method(family.model, prompt_ids=ids):
        answer = family.generate(encoded, arguments)
    (length,) = answer_lengths(answer[:1].cpu(), arguments["eos_token_id"])
    return read_answer(family.model, method, encoded.inputs, answer[:1, :length])


@torch.inference_mode()
def read_answer(model: Any, method: Method, inputs: Mapping[str, Any], answer: Tensor) -> Reading:
    """Read the attention of each layer on a prompt and an answer.

    Parameters
    ----------
    model
        A model of transformers.
    method
        What is installed on it.
    inputs
        Arguments of its forward for one prompt.
    answer
        The answer's tokens, long ``[1, tokens]``; the last one is not run, since nothing is asked behind it.

    Raises
    ------
    ValueError
        See :func:`read`.
    """
    given = answer[:, :-1].to(inputs["input_ids"].device)
    whole = extended(inputs, given)
    is_answer = torch.arange(whole["input_ids"].shape[1]) >= inputs["input_ids"].shape[1]
    found: list[LayerNumbers] = []
    known: list[Tensor] = []

    def look(entering: Entering) -> None:
        if not known:
            known.append(roles(entering.prompt))
        found.append(layer_numbers(entering, known[0]))

    fewer = {"logits_to_keep": answer.shape[1]} if "logits_to_keep" in parameters(model) else {}
    with install(method, model, answer_mask=is_answer[None] if given.shape[1] else None, observer=look):
        logits = model(**whole, use_cache=False, **fewer).logits[0, -answer.shape[1] :]
    predicted = int((logits.argmax(dim=-1) == answer[0].to(logits.device)).sum())
    counts = tuple(int((known[0] == role).sum()) for role in range(5))
    return Reading(tuple(found), answer.shape[1], predicted, counts)


def extended(inputs: Mapping[str, Any], answer: Tensor) -> dict[str, Any]:
    """Return the inputs of a prompt with tokens behind it, which are text.

    Parameters
    ----------
    inputs
        Arguments of a model's forward, ``input_ids`` among them; what has their shape is of each token: the mask, and
        types, of which 0 is text's.
    answer
        Long ``[rows, new]``.
    """
    ids = inputs["input_ids"]
    found = dict(inputs)
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.shape == ids.shape:
            more = torch.ones_like(answer) if name == "attention_mask" else torch.zeros_like(answer)
            more = answer if name == "input_ids" else more
            found[name] = torch.cat([value, more.to(value)], dim=1)
    return found
