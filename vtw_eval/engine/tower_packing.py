"""From a tower's patches to the vision tokens of the prompt, by the model's own packing.

After the tower, a model drops a CLS token, merges patches, joins tiles, cuts padding, adds newlines, pools frames. None
of that is written here again: the model's own ``get_image_features`` runs once more with other numbers in the place of
the tower's output, and a projector that passes them on. Its weights do not work, so this costs moves of data only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vtw_eval.anatomy import Tower
from vtw_eval.engine.calls import changed
from vtw_eval.engine.tower_pass import TowerCall, TowerRecorder
from vtw_eval.engine.wrappers import replaced

_MARKS = (1.0, 2.0, 3.0)
"""Channels in front of the numbers that are packed: they come out unchanged where there were patches, and only there,
since what a model puts between them (newlines) is a learnt vector."""

Pass = Callable[..., Any]


@dataclass(frozen=True)
class Packed:
    """Numbers of a tower's patches at the tokens of its images or videos."""

    values: Tensor
    """``[tokens, channels]``, mean over the patches of a token; zeros where a token has none."""
    real: Tensor
    """Boolean ``[tokens]``: which tokens have patches."""
    items: Tensor
    """Long ``[tokens]``: to which of the things that the model gives back (an image, a tile, a video) each belongs."""


@torch.no_grad()
def pack(recorder: TowerRecorder, call: TowerCall, values: Tensor, width: int) -> Packed:
    """Bring numbers of a tower's patches to the tokens of the prompt.

    Parameters
    ----------
    recorder
        The tower.
    call
        The run that they are of.
    values
        ``[images, patches, channels]`` or ``[patches, channels]``, as the tower's layers see their tokens.
    width
        Width of the decoder.

    Raises
    ------
    UpstreamChangedError
        If they do not come out as they went in.
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    marks = values.new_tensor(_MARKS).expand(*values.shape[:-1], -1)
    parts = [
        _once(recorder, call, torch.cat((marks, part), dim=-1), width)
        for part in values.split(width - len(_MARKS), dim=-1)
    ]
    items = [part.shape[0] for part in parts[0]]
    flat = [torch.cat(part) for part in parts]
    real = ((flat[0][:, : len(_MARKS)] - values.new_tensor(_MARKS)).abs() < 1e-3).all(dim=1)
    rest = [part[:, len(_MARKS) :] for part in flat]
    packed = torch.cat(rest, dim=1)[:, : values.shape[-1]] * real[:, None]
    numbers = torch.arange(len(items), device=values.device)
    return Packed(packed, real, numbers.repeat_interleave(torch.tensor(items, device=values.device)))


def unpack(recorder: TowerRecorder, call: TowerCall, values: Tensor, width: int) -> Tensor:
    """Bring numbers of tokens back to the patches of which they are made.

    What packing does is linear, so its gradient tells how much of each patch is in each token.

    Parameters
    ----------
    recorder, call, width
        As in :func:`pack`, of a run that was no part of inference mode.
    values
        ``[tokens, channels]``, of all tokens of the run, fewer channels than ``width - 4``.

    Returns
    -------
    Tensor
        ``[images, patches, channels]`` or ``[patches, channels]``, as the tower's layers see their tokens: the mean
        over the tokens that have a part of the patch, weighted by the part; NaN for a patch that no token has.

    Raises
    ------
    UpstreamChangedError
        If the tokens are not as many as the run has made.
    """
    state = next(iter(call.states.values()))
    wanted = torch.cat((values.new_ones(len(values), 1), values), dim=1).float()
    with torch.enable_grad():
        probe = torch.zeros(*state.shape[:-1], wanted.shape[1], device=state.device, requires_grad=True)
        packed = torch.cat(_once(recorder, call, probe, width))[:, : wanted.shape[1]]
        if len(packed) != len(wanted):
            raise changed(f"the vision tower has {len(packed)} tokens for the {len(wanted)} of the prompt")
        [found] = torch.autograd.grad((packed * wanted.to(packed)).sum(), probe)
    part = found[..., :1]
    return torch.where(part > 1e-6, found[..., 1:] / part.clamp(min=1e-6), torch.nan)


def _once(recorder: TowerRecorder, call: TowerCall, values: Tensor, width: int) -> list[Tensor]:
    """Run the model's packing on ``[..., channels]``, fewer than ``width``; a tensor for each thing that it gives."""
    tower = recorder.tower
    recorder.repeating = True
    try:
        with ExitStack() as stack:
            for module, forward in _stand_ins(tower, call, values, width).items():
                stack.enter_context(replaced(module, {"forward": forward}))
            output = call.features(**call.arguments)
    finally:
        recorder.repeating = False
    found = output.pooler_output if hasattr(output, "pooler_output") else output
    found = list(found)
    if not all(isinstance(part, Tensor) and part.ndim == 2 and part.shape[1] == width for part in found):
        raise changed(f"{call.features.__name__} does not give vision features of [tokens, {width}]")
    return found


def _stand_ins(tower: Tower, call: TowerCall, values: Tensor, width: int) -> Mapping[nn.Module, Pass]:
    """Return what runs in the place of a model's modules, so that ``values`` go through its packing."""
    if tower.merges:
        return _in_tower(tower, call, values, width)
    states = (values,) * (len(tower.layers[call.which]) + 1)
    output = BaseModelOutputWithPooling(last_hidden_state=values, pooler_output=values, hidden_states=states)
    # What joins patches in its own way; all other projectors get one patch, or those that belong together side by side.
    projector: Any = tower.projector
    channels = values.shape[-1]
    modules: dict[nn.Module, Pass] = {tower.towers[call.which]: lambda *_, **__: output}
    joined: Pass
    if hasattr(projector, "pixel_shuffle"):
        factor = (projector.scale_factor,) if hasattr(projector, "scale_factor") else ()
        joined = lambda x: _mean(projector.pixel_shuffle(x, *factor), channels)  # noqa: E731
    elif hasattr(projector, "patch_merger"):
        # Patches side by side in each channel, as F.unfold lays them.
        modules[projector.patch_merger.merging_layer] = lambda x: x.unflatten(-1, (channels, -1)).mean(dim=-1)
        joined = projector.patch_merger
    elif hasattr(projector, "avg_pool"):
        side = projector.patches_per_image
        joined = lambda x: projector.avg_pool(x.mT.unflatten(-1, (side, side))).flatten(2).mT  # noqa: E731
    else:
        joined = lambda x: _mean(x, channels)  # noqa: E731
    modules[projector] = lambda *args: _widened(joined(*args), width)
    return modules


def _in_tower(tower: Tower, call: TowerCall, values: Tensor, width: int) -> Mapping[nn.Module, Pass]:
    """Return the same for a tower that merges patches itself, four of them that stand one after another."""
    visual: Any = tower.towers[call.which]
    merged = visual.spatial_merge_size**2
    empty = values.new_zeros(len(values), next(iter(call.states.values())).shape[-1])
    modules: dict[nn.Module, Pass] = {visual.patch_embed: lambda *_, **__: empty}
    modules |= dict.fromkeys(tower.layers[call.which], lambda *_, **__: values)
    groups: Pass = lambda x: _widened(x.unflatten(0, (-1, merged)).mean(dim=1), width)  # noqa: E731
    if hasattr(visual, "downsample"):
        modules[visual.downsample] = lambda x: _widened(x.mean(dim=(2, 3)), width)
        modules |= {visual.post_layernorm: lambda x: x, visual.post_conv_layernorm: lambda x: x}
        modules |= {visual.embeddings: lambda x, *_: x, tower.projector: lambda x: x}
        return modules
    return {**modules, **dict.fromkeys((tower.projector, *getattr(visual, "deepstack_merger_list", ())), groups)}


def _mean(x: Tensor, channels: int) -> Tensor:
    """Mean over patches whose channels stand side by side."""
    return x.unflatten(-1, (-1, channels)).mean(dim=-2)


def _widened(x: Tensor, width: int) -> Tensor:
    return nn.functional.pad(x, (0, width - x.shape[-1]))
