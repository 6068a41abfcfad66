"""Where the tokens of an image or a video stand."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vtw_eval.engine.tower_packing import Packed, pack
from vtw_eval.engine.tower_pass import TowerCall, TowerRecorder

_GRIDS = ("image_grid_thw", "video_grid_thw")


def places_of(recorder: TowerRecorder, call: TowerCall, width: int) -> tuple[Tensor, bool]:
    """Return the places of the tokens of a run of the tower.

    Parameters
    ----------
    recorder, call, width
        As in :func:`~vtw_eval.engine.tower_packing.pack`.

    Returns
    -------
    Tensor
        Long ``[tokens, 5]``: image (numbered through the run), frame, tile, row, column; -1 without a place.
    bool
        Whether the first column numbers tiles of which only the prompt tells to which images they belong.
    """
    grid = next((call.arguments[name] for name in _GRIDS if call.arguments.get(name) is not None), None)
    if grid is not None:
        visual: Any = recorder.tower.towers[call.which]
        return _of_grids(grid.tolist(), visual.spatial_merge_size), False
    codes = _codes(recorder, call)
    packed = pack(recorder, call, codes, width)
    found = torch.full((len(packed.real), 5), -1, dtype=torch.long, device=codes.device)
    where = packed.values.round().long()
    whole = packed.real & ((packed.values[:, 0] - where[:, 0]).abs() < 1e-3)  # of one image of the tower
    found[:, 3:] = torch.where(whole[:, None], _ranks(packed.values, where[:, 0], whole), -1)
    if call.kind == "video":
        frames = call.arguments["pixel_values_videos"].shape[1]
        found[:, 0], found[:, 1], found[:, 2] = where[:, 0] // frames, where[:, 0] % frames, 0
    elif _lists_images(recorder, call):
        found[:, 0], found[:, 1] = packed.items, 0
        found[:, 2] = torch.where(whole, where[:, 0] - _first(packed, where[:, 0], whole)[packed.items], -1)
    else:
        found[:, 0], found[:, 1], found[:, 2] = where[:, 0], 0, 0
    found[~packed.real] = -1
    return found, _by_runs(recorder)


def _by_runs(recorder: TowerRecorder) -> bool:
    """Whether the tiles of an image stand side by side in the prompt, told by nothing else."""
    return recorder.tower.owner.config.model_type == "internvl"  # type: ignore[union-attr]


def _lists_images(recorder: TowerRecorder, call: TowerCall) -> bool:
    """Whether a model gives a list of the features of images, each of all its tiles."""
    return call.arguments.get("image_sizes") is not None


def _first(packed: Packed, image: Tensor, whole: Tensor) -> Tensor:
    """Return the first entry of the tower for each thing that the model gives back."""
    lowest = torch.full((int(packed.items.max()) + 1,), 2**62, device=image.device)
    return lowest.scatter_reduce(0, packed.items[whole], image[whole], "amin")


def _of_grids(grids: list[list[int]], merge: int) -> Tensor:
    """Return the places of images and videos whose tokens stand frame by frame, row by row."""
    parts = []
    for number, (frames, rows, columns) in enumerate(grids):
        sizes = (frames, rows // merge, columns // merge)
        frame, row, column = torch.meshgrid(*(torch.arange(size) for size in sizes), indexing="ij")
        parts.append(torch.stack([torch.full_like(frame, number), frame, torch.zeros_like(frame), row, column], dim=-1))
    return torch.cat([part.flatten(0, 2) for part in parts])


def _codes(recorder: TowerRecorder, call: TowerCall) -> Tensor:
    """Return image, row and column of each patch of a tower, ``[images, patches, 3]``; -1 for a CLS token."""
    state = next(iter(call.states.values()))
    images, tokens = state.shape[:2]
    visual: Any = recorder.tower.towers[call.which]
    sizes = call.arguments.get("image_sizes")
    if sizes is not None and images == 1 and visual.config.model_type == "pixtral":
        # images of any size, one after another
        grids = [(int(height) // visual.patch_size, int(width) // visual.patch_size) for height, width in sizes]
        parts = [_grid(rows, columns, number) for number, (rows, columns) in enumerate(grids)]
        return torch.cat(parts)[None].to(state.device)
    own = tokens - recorder.tower.has_cls
    side = math.isqrt(own)
    if side * side != own:
        return torch.full((images, tokens, 3), -1.0, device=state.device)
    one = _grid(side, side, 0)
    if recorder.tower.has_cls:
        one = torch.cat((torch.tensor([[0.0, -1.0, -1.0]]), one))
    codes = one.expand(images, -1, -1).clone()
    codes[..., 0] = torch.arange(images, dtype=codes.dtype)[:, None]
    return codes.to(state.device)


def _grid(rows: int, columns: int, number: int) -> Tensor:
    row, column = torch.meshgrid(torch.arange(float(rows)), torch.arange(float(columns)), indexing="ij")
    return torch.stack([torch.full_like(row, number), row, column], dim=-1).flatten(0, 1)


def _ranks(values: Tensor, image: Tensor, whole: Tensor) -> Tensor:
    """Return the numbers of rows and columns among those of the same image, ``[tokens, 2]``; -1 for a CLS token."""
    found = torch.full((len(values), 2), -1, dtype=torch.long, device=values.device)
    for axis in (1, 2):
        at = (values[:, axis] * 1024).round().long()
        here = whole & (at >= 0)
        pairs, inverse = torch.stack((image[here], at[here]), dim=1).unique(dim=0, return_inverse=True)
        number = torch.arange(len(pairs), device=values.device)
        first = torch.full((int(image.max()) + 1,), len(pairs), device=values.device)
        first = first.scatter_reduce(0, pairs[:, 0], number, "amin")
        found[here, axis - 1] = (number - first[pairs[:, 0]])[inverse]
    return found
