"""Where the tokens of an image or a video stand."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vtw_eval.engine.calls import changed
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
    own = int(tokens) - recorder.tower.has_cls
    rows = next(rows for rows in range(math.isqrt(own), 0, -1) if own % rows == 0)  # all but dry runs have squares
    one = _grid(rows, own // rows, 0)
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


def scattered(into: Tensor, mask: Tensor, packed: Tensor) -> Tensor:
    """Put the tokens of a run, ``[n, ...]``, where ``mask``, boolean ``[rows, tokens]``, says.

    Rows that are repeated, for beams or several answers, share what was packed once.

    Raises
    ------
    UpstreamChangedError
        If the numbers do not fit.
    """
    there = int(mask.sum())
    times = there // max(len(packed), 1)
    if times == 0 or there != times * len(packed) or len(mask) % times or int(mask[::times].sum()) != len(packed):
        raise changed(f"the vision tower has {len(packed)} tokens for the {there} of the prompt")
    into = into.clone()
    for first in range(times):
        into[first::times][mask[first::times]] = packed
    return into


def arranged(vision: Tensor, masks: dict[str, Tensor], placed: dict[str, tuple[Tensor, bool]]) -> tuple[Tensor, Tensor]:
    """Return places and extents of the prompt's tokens, images numbered within their rows.

    Parameters
    ----------
    vision
        Boolean ``[rows, tokens]``.
    masks
        Tokens of each run.
    placed
        Places of each run, long ``[n, 5]``, images numbered through; and whether its entries of the first column are
        tiles of images that are told by the runs of tokens in the prompt.
    """
    places = torch.full((*vision.shape, 5), -1, dtype=torch.long, device=vision.device)
    for kind, (own, by_runs) in placed.items():
        places = scattered(places, masks[kind], own.to(vision.device))
        if by_runs:
            places = _images_by_runs(places, masks[kind])
        elif kind == "video" and len(placed) > 1:  # other numbers than those of images
            shift = masks[kind] & (places[..., 0] >= 0)
            places[..., 0] = torch.where(shift, places[..., 0] + vision.numel(), places[..., 0])
    extent = torch.full((*vision.shape, 2), -1, dtype=torch.long, device=vision.device)
    for row in range(len(vision)):
        here = places[row, :, 0] >= 0
        if not bool(here.any()):
            continue
        found, inverse = places[row, here, 0].unique(return_inverse=True)
        first = torch.full_like(found, vision.shape[1]).scatter_reduce(
            0, inverse, torch.arange(len(inverse), device=vision.device), "amin"
        )
        places[row, here, 0] = first.argsort().argsort()[inverse]
        _, groups = places[row, here, :3].unique(dim=0, return_inverse=True)
        largest = torch.full((int(groups.max()) + 1, 2), -1, dtype=torch.long, device=vision.device)
        largest = largest.scatter_reduce(0, groups[:, None].expand(-1, 2), places[row, here, 3:], "amax")
        extent[row, here] = torch.where(places[row, here, 3:] >= 0, largest[groups] + 1, -1)
    return places, extent


def _images_by_runs(places: Tensor, mask: Tensor) -> Tensor:
    """Return places whose images are the runs of tokens of the prompt; of several tiles the last, the whole, is 0."""
    begins = mask & ~torch.nn.functional.pad(mask, (1, 0))[:, :-1]
    image = begins.flatten().cumsum(0).view_as(mask) - 1
    count = int(image.max()) + 1
    tile = places[..., 0]
    span = torch.stack([torch.full((count,), 2**62), torch.full((count,), -1)]).to(places.device)
    lowest = span[0].scatter_reduce(0, image[mask], tile[mask], "amin")
    highest = span[1].scatter_reduce(0, image[mask], tile[mask], "amax")
    within, tiles = tile - lowest[image.clamp(min=0)], (highest - lowest + 1)[image.clamp(min=0)]
    places = places.clone()
    places[..., 2] = torch.where(mask, (within + 1) % tiles.clamp(min=1), places[..., 2])
    places[..., 0] = torch.where(mask, image, places[..., 0])
    return places
