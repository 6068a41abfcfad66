"""Whether a method does the same to prompts that share what they begin with as to a prompt alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vtw_eval.engine import Trace
from vtw_eval.engine.prefix import run_prefix
from vtw_eval.methods import Method
from vtw_eval.models.family import DocumentPrompt, Family
from vtw_eval.models.sharing import SharingError


@torch.no_grad()
def check_choice(family: Family[Any], method: Method, trace: Trace, length: int, prompt: DocumentPrompt) -> None:
    """Check that a method keeps the same of a prefix as of a whole prompt.

    Parameters
    ----------
    family, method
        What ran; no method is installed any more.
    trace
        Of prefixes, the first of which is looked at.
    length
        Tokens of that.
    prompt
        One that begins with it.

    Raises
    ------
    SharingError
        If it does not: then what it removes depends on the question, whatever it says.
    """
    whole = family.encode([prompt])
    with method(family.model, prompt_ids=whole.inputs["input_ids"]) as full:
        run_prefix(family.model, whole.inputs)
    for layer in range(trace.tokens_per_layer.shape[1]):
        alone, before = full.kept(layer)[0], trace.kept(layer)[0, -length:]
        if not torch.equal(alone[:length], before) or not bool(alone[length:].all()):
            raise SharingError(f"{method} keeps other tokens of an image when a question follows")


@torch.no_grad()
def check_late(
    family: Family[Any],
    method: Method,
    arguments: Mapping[str, Any],
    trace: Trace,
    tokens: Tensor,
    row: int,
    prompt: DocumentPrompt,
) -> None:
    """Check that a method keeps the same of a prompt alone as of one that entered late, and both are answered alike.

    In half precision, where borders of a choice move with the batch, as many tokens have to be left in each layer.

    Parameters
    ----------
    family, method
        What ran; no method is installed any more.
    arguments
        Of ``generate``.
    trace
        Of prompts that entered late.
    tokens
        Their answers, long ``[prompts, new]`` on the CPU.
    row
        Which of them is looked at.
    prompt
        It.

    Raises
    ------
    SharingError
        If it does not.
    """
    whole = family.encode([prompt])
    with method(family.model, prompt_ids=whole.inputs["input_ids"]) as full:
        alone = family.generate(whole, arguments)[0].cpu()
    same = torch.equal(full.tokens_per_layer[0], trace.tokens_per_layer[row])
    if same and family.exact:
        assert trace.reduction is not None and full.reduction is not None, "both have run"
        mine, only = trace.reduction.prompt.valid[row], full.reduction.prompt.valid[0]
        layers = range(trace.tokens_per_layer.shape[1])
        same = all(torch.equal(trace.kept(i)[row, mine], full.kept(i)[0, only]) for i in layers)
        new = min(len(alone), tokens.shape[1])  # a batch goes on until its last answer has ended
        same = same and torch.equal(alone[:new], tokens[row, :new])
    if not same:
        raise SharingError(f"{method} does something else to a prompt alone than to one that enters late")
