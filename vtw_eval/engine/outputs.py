"""Outputs of a reduced pass at the length of the prompt, so that they line up with ``input_ids``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vtw_eval.engine.layout import Layout, last_slot, spread
from vtw_eval.engine.step import Step


def restore_last(output: Any, step: Step, layout: Layout) -> Any:
    """Return a decoder's output with its last hidden states at the prompt's length, zeros where a token was removed.

    Parameters
    ----------
    output
        Of the decoder, changed in place unless it is a tuple.
    step
        The prefill, which is told that this part is restored.
    layout
        Of the last layer.
    """
    prompt = step.reduction.prompt
    hidden = output[0] if isinstance(output, tuple) else output.last_hidden_state
    full = spread(hidden, layout, prompt.length, 1)
    # An answer begins at the prompt's last place: it shows the last surviving token, whichever that is.
    rows = torch.arange(full.shape[0], device=full.device)
    last = last_slot(layout, prompt).to(full.device)
    full.index_put_((rows, prompt.last().to(full.device)), hidden[rows, last])
    step.restored.append(full)
    if isinstance(output, tuple):
        return (full, *output[1:])
    output.last_hidden_state = full
    return output


def blank_labels(labels: Tensor, step: Step) -> None:
    """Take out of a loss, in place, the labels that no token predicts any more."""
    prompt = step.reduction.prompt
    kept = step.reduction.kept(-1).scatter(1, prompt.last()[:, None], True).to(labels.device)
    labels[:, 1:].masked_fill_(~kept[:, :-1], -100)


def restore_recorded(output: Any, step: Step) -> None:
    """Bring recorded hidden states and attentions to the prompt's length, in place.

    Parameters
    ----------
    output
        Of the decoder or of the whole model.
    step
        The pass.
    """
    if not hasattr(output, "keys"):
        return
    layouts, prompt = step.reduction.layouts, step.reduction.prompt
    for name in ("hidden_states", "attentions"):
        if output.get(name) is None or (name == "hidden_states" and step.decoding):
            continue
        # hidden states begin with the input of layer 0; entry i is the output of layer i - 1
        expected = [layouts[0], *layouts] if name == "hidden_states" else layouts
        entries = list(output[name])
        for i, (entry, layout) in enumerate(zip(entries, expected, strict=True)):
            if entry is None or layout is None or any(entry is done for done in step.restored):
                continue
            if name == "hidden_states":
                entry = spread(entry, layout, prompt.length, 1)
            else:
                entry = _spread_keys(entry, layout, prompt.length, step.total)
                entry = entry if step.decoding else spread(entry, layout, prompt.length, 2)
            step.restored.append(entry)
            entries[i] = entry
        output[name] = tuple(entries)


def _spread_keys(attention: Tensor, layout: Layout, length: int, total: int) -> Tensor:
    """Bring attention weights ``[rows, heads, queries, keys]`` to ``total`` keys, zero where a key was not held."""
    held = layout.slots + total - length
    attention = nn.functional.pad(attention[..., :held], (max(held - attention.shape[-1], 0), 0))  # sliding window
    return spread(attention, layout, length, 3)
