"""What the trace of a generation tells about each of its prompts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vtw_eval.engine import Trace
from vtw_eval.engine.layout import Reduction
from vtw_eval.models.family import DocumentPrompt, Encoded
from vtw_eval.record.kept import changes_of, pack
from vtw_eval.versions import UpstreamChangedError


@dataclass(frozen=True)
class Counts:
    """Tokens of a prompt."""

    input_tokens: int
    """All of them, padding left out."""
    vision_tokens: int
    """Vision tokens."""
    tokens_per_layer: tuple[int, ...]
    """Tokens that entered each decoder layer."""
    vision_per_layer: tuple[int, ...]
    """Vision tokens that did."""
    updated_per_layer: tuple[int, ...] = ()
    """Tokens that each layer updated; empty where these are all that entered it."""
    kept: str = ""
    """Which vision tokens entered which layers, see :mod:`vtw_eval.record.kept`."""

    def behind(self, text: int) -> Counts:
        """Return those of a prompt that goes on behind this one with some text tokens, none of which goes."""
        layers = tuple(tokens + text for tokens in self.tokens_per_layer)
        updated = tuple(tokens + text for tokens in self.updated_per_layer)
        tokens = self.input_tokens + text
        return replace(self, input_tokens=tokens, tokens_per_layer=layers, updated_per_layer=updated)


def counts_of(trace: Trace, beams: int) -> list[Counts]:
    """Return the counts of each prompt.

    Parameters
    ----------
    trace
        After the generation.
    beams
        How many times ``generate`` repeats each row, side by side.
    """
    assert trace.reduction is not None, "generate has run"
    prompt = trace.reduction.prompt
    parts = (
        prompt.valid.sum(dim=1).tolist(),
        prompt.vision.sum(dim=1).tolist(),
        trace.tokens_per_layer.tolist(),
        trace.vision_per_layer.tolist(),
        trace.updated_per_layer.tolist() if trace.frozen else [()] * len(prompt.valid),
    )
    found = [
        Counts(tokens, vision, tuple(layers), tuple(shown), tuple(updated))
        for tokens, vision, layers, shown, updated in list(zip(*parts, strict=True))[::beams]
    ]
    return [replace(each, kept=kept) for each, kept in zip(found, _kept(trace.reduction, found, beams), strict=True)]


def _kept(reduction: Reduction, found: Sequence[Counts], beams: int) -> list[str]:
    """Return of each prompt which vision tokens entered which layers."""
    changes = [
        [layer for layer in changes_of(each.vision_tokens, each.vision_per_layer) if each.vision_per_layer[layer]]
        for each in found
    ]
    # Rows of a batch may change at other layers; what enters one is brought to the CPU once for all of them.
    masks = {layer: reduction.kept(layer)[::beams].cpu() for layer in sorted(set().union(*changes))}
    vision = reduction.prompt.vision[::beams].cpu()
    return [
        pack(_outlived([masks[layer][row, vision[row]] for layer in own], each.vision_tokens), len(own))
        for row, (each, own) in enumerate(zip(found, changes, strict=True))
    ]


def _outlived(sets: Sequence[Tensor], vision: int) -> list[int]:
    """Return how many of some sets, each boolean ``[vision tokens]`` and a part of the one before, a token is in.

    Raises
    ------
    ValueError
        If a token comes back.
    """
    if any(bool((after & ~before).any()) for before, after in itertools.pairwise(sets)):
        raise ValueError("a vision token has come back into a layer after it had left.")
    return torch.stack(tuple(sets)).sum(dim=0).tolist() if sets else [0] * vision


def check_trace(trace: Trace, encoded: Encoded, prompts: Sequence[DocumentPrompt]) -> None:
    """Check that a trace is that of one generation from these prompts.

    Parameters
    ----------
    trace
        After the generation.
    encoded, prompts
        What it was for.

    Raises
    ------
    UpstreamChangedError
        If the prompts ran more than once or not at all, if other tokens entered the decoder than those that are not
        padding, or if an image or video has no vision tokens.
    """
    if trace.reduction is None or trace.prefills != 1:
        raise UpstreamChangedError(f"a generation counts as {trace.prefills} prompts", "transformers")
    prompt, mask = trace.reduction.prompt, encoded.inputs["attention_mask"].bool()
    beams = len(prompt.valid) // len(mask)  # generate repeats each row once per beam, side by side
    valid, vision = prompt.valid[::beams].to(mask.device), prompt.vision[::beams]
    if not torch.equal(valid, mask):
        entered, given = valid.sum(dim=1).tolist(), mask.sum(dim=1).tolist()
        raise UpstreamChangedError(f"{entered} tokens entered the decoder for prompts of {given}", "transformers")
    for row, (shown, document) in enumerate(zip(vision.any(dim=1).tolist(), prompts, strict=True)):
        if not shown and (document.images or document.videos):
            raise UpstreamChangedError(f"prompt {row} of the batch has media, but no vision tokens", "transformers")
