"""What a model sees: its pictures as the vision tower gets them, and which token stands where in them.

Pictures are drawn as the processor gave them (resized, cropped, padded, cut into tiles), with the normalisation undone:
there each token's place is certain in every family, which it is not in the file that was opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vtw_eval.anatomy import Anatomy
from vtw_eval.engine import LayerView, Reads
from vtw_eval.engine.calls import by_name, changed
from vtw_eval.engine.hooks import install
from vtw_eval.engine.tower import TowerView
from vtw_eval.engine.tower_packing import unpack
from vtw_eval.engine.tower_pass import TowerCall
from vtw_eval.models.family import Encoded, Family

_GRIDS = ("image_grid_thw", "video_grid_thw")
_INPUTS = ("pixel_values", "hidden_states")
"""What towers call their pictures."""


@dataclass(frozen=True)
class Panel:
    """One picture as the tower gets it: a whole image, a tile of it, or a frame."""

    name: str
    """What it is, such as "picture 1, tile 2"."""
    pixels: NDArray[np.uint8]
    """``[height, width, 3]``."""
    rows: int
    """Rows of patches; of tokens where the tower joins patches side by side itself."""
    columns: int
    """Columns of them."""


@dataclass(frozen=True)
class _Grid:
    """Pictures whose tokens stand row by row."""

    panels: tuple[Panel, ...]

    def shares(self, own: Tensor) -> Iterator[Tensor]:
        begin = 0
        for panel in self.panels:
            count = panel.rows * panel.columns
            yield own[begin : begin + count].T.reshape(-1, panel.rows, panel.columns)
            begin += count


@dataclass(frozen=True)
class _Packed:
    """Pictures whose tokens the model packs in its own way."""

    panels: tuple[Panel, ...]
    view: TowerView = field(repr=False)
    call: TowerCall = field(repr=False)

    def shares(self, own: Tensor) -> Iterator[Tensor]:
        width, device = self.view.width, self.view.prompt.vision.device
        parts = [
            unpack(self.view.recorder, self.call, part, width).cpu() for part in own.to(device).split(width - 1, 1)
        ]
        patches = torch.cat(parts, dim=-1)[:, int(self.view.has_cls) :]
        for panel, values in zip(self.panels, patches, strict=True):
            yield values.T.reshape(-1, panel.rows, panel.columns)


@dataclass(frozen=True)
class Sight:
    """The pictures of one prompt."""

    parts: tuple[tuple[Tensor, _Grid | _Packed], ...] = field(repr=False)
    """For each run of the tower: which of the prompt's tokens it made, boolean ``[tokens]``, and its pictures."""

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All pictures, in the order of the tower."""
        return tuple(panel for _, part in self.parts for panel in part.panels)

    @property
    def tokens(self) -> Tensor:
        """The prompt's vision tokens, boolean ``[tokens]``."""
        return torch.stack([own for own, _ in self.parts]).any(dim=0)

    def shares(self, tokens: Tensor) -> list[Tensor]:
        """Return how much of each patch is in some tokens of the prompt.

        Parameters
        ----------
        tokens
            Boolean ``[sets, tokens]``.

        Returns
        -------
        list of Tensor
            For each of :attr:`panels` ``[sets, rows, columns]``, 0 to 1; NaN for a patch that no token has, such as the
            padding of a tile.
        """
        sets = tokens.float().cpu()
        return [share for own, part in self.parts for share in part.shares(sets[:, own].T)]


class _Observer:
    """Keeps all tokens, and remembers the tower."""

    positions = "keep"
    reads = Reads.TOWER

    def __init__(self) -> None:
        self.tower: TowerView | None = None

    def tower_layers(self, num_layers: int) -> Sequence[int]:
        return (0,)

    def bind(self, anatomy: Anatomy) -> _Observer:
        return self

    def layers(self, num_layers: int) -> Sequence[int]:
        return (0,)

    def frozen_layers(self, num_layers: int) -> Sequence[int]:
        return ()

    def keep(self, view: LayerView) -> Tensor:
        view.tower.masks  # noqa: B018  they are forgotten after the pass
        self.tower = view.tower
        return view.valid


@torch.no_grad()
def look(family: Family[Any], encoded: Encoded) -> Sight:
    """Run a prompt, and return what the tower got.

    Parameters
    ----------
    family
        The model.
    encoded
        One prompt.

    Raises
    ------
    ValueError
        If the prompt shows nothing, or the model's tower cannot be read.
    UpstreamChangedError
        If the tower gets its pictures in another way than is known.
    """
    observer, given = _Observer(), list[Tensor]()

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        named = by_name(module, args, dict(kwargs))
        pictures = next((named[name] for name in _INPUTS if named.get(name) is not None), None)
        if pictures is None:
            raise changed(f"{type(module).__name__} gets no {' or '.join(_INPUTS)}")
        given.append(pictures)

    with ExitStack() as stack:
        stack.enter_context(install(observer, family.model))
        for tower in _towers(family.model):
            stack.callback(tower.register_forward_pre_hook(note, with_kwargs=True).remove)
        family.model(**encoded.inputs)
    view = observer.tower
    if view is None or not view.calls:
        raise ValueError("the prompt shows no picture: there is nothing to draw.")
    if len(view.prompt.vision) != 1:
        raise ValueError("one prompt at a time can be looked at.")
    parts = []
    for call, pictures in zip(view.calls, given, strict=True):
        pixels = _denormalised(family.processor, call.kind)
        parts.append((view.masks[call.kind][0].cpu(), _part(view, call, pictures.detach().float().cpu(), pixels)))
    return Sight(tuple(parts))


def _towers(model: nn.Module) -> tuple[nn.Module, ...]:
    from vtw_eval.anatomy import find_anatomy, find_tower

    return find_tower(find_anatomy(model)).towers


@dataclass(frozen=True)
class _Pixels:
    """Undoes a processor's normalisation."""

    mean: Tensor
    std: Tensor

    def __call__(self, picture: Tensor) -> NDArray[np.uint8]:
        """Return pixels ``[height, width, 3]`` of a picture ``[3, height, width]``."""
        shown = picture * self.std[:, None, None] + self.mean[:, None, None]
        return (shown.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def _denormalised(processor: Any, kind: str) -> _Pixels:
    names = ("video_processor", "image_processor") if kind == "video" else ("image_processor",)
    own = next(part for name in names if (part := getattr(processor, name, None)) is not None)
    if not own.do_normalize:
        return _Pixels(torch.zeros(3), torch.ones(3))
    return _Pixels(torch.tensor(own.image_mean).float(), torch.tensor(own.image_std).float())


def _part(view: TowerView, call: TowerCall, pictures: Tensor, pixels: _Pixels) -> _Grid | _Packed:
    tower: Any = view.tower.towers[call.which]
    grid = next((call.arguments[name] for name in _GRIDS if call.arguments.get(name) is not None), None)
    if grid is not None:
        return _Grid(tuple(_of_patches(tower, call, pictures, grid.tolist(), pixels)))
    if tower.config.model_type == "pixtral":
        sizes = call.arguments["image_sizes"].tolist()
        return _Grid(tuple(_of_sizes(tower.patch_size, pictures, sizes, pixels)))
    state = next(iter(call.states.values()))
    if pictures.ndim != 4 or len(pictures) != len(state):
        raise changed(f"{type(tower).__name__} gets pictures of {tuple(pictures.shape)} for {len(state)} images")
    height, width = pictures.shape[-2:]
    patches = state.shape[1] - view.has_cls
    side = (height * width / patches) ** 0.5
    rows, columns = round(height / side), round(width / side)
    if rows * columns != patches:
        raise changed(f"{type(tower).__name__} makes {patches} patches of a picture of {height} x {width}")
    names = _names(view, call)
    panels = tuple(Panel(name, pixels(picture), rows, columns) for name, picture in zip(names, pictures, strict=True))
    return _Packed(panels, view, call)


def _of_patches(
    tower: Any, call: TowerCall, patches: Tensor, grids: list[list[int]], pixels: _Pixels
) -> Iterator[Panel]:
    """Put flattened patches back together; those that are merged stand one after another."""
    merge, deep, side = tower.spatial_merge_size, tower.config.temporal_patch_size, tower.config.patch_size
    begin = 0
    for number, (frames, high, wide) in enumerate(grids):
        rows, columns = high // merge, wide // merge
        own = patches[begin : begin + frames * high * wide]
        begin += len(own)
        own = own.reshape(frames, rows, columns, merge, merge, 3, deep, side, side)[:, :, :, :, :, :, 0]
        whole = own.permute(0, 5, 1, 3, 6, 2, 4, 7).reshape(frames, 3, high * side, wide * side)
        for frame, picture in enumerate(whole):
            of_many = f", frames {deep * frame + 1} to {deep * (frame + 1)}" if call.kind == "video" else ""
            yield Panel(f"{_KINDS[call.kind]} {number + 1}{of_many}", pixels(picture), rows, columns)


def _of_sizes(side: int, pictures: Tensor, sizes: list[list[int]], pixels: _Pixels) -> Iterator[Panel]:
    """Cut pictures of several sizes out of their padding."""
    for number, (picture, (height, width)) in enumerate(zip(pictures, sizes, strict=True)):
        shown = pixels(picture[:, :height, :width])
        yield Panel(f"{_KINDS['image']} {number + 1}", shown, height // side, width // side)


_KINDS = {"image": "picture", "video": "video"}


def _names(view: TowerView, call: TowerCall) -> list[str]:
    """Return what each entry of the tower is, by the places of its tokens."""
    own = view.masks[call.kind]
    places = view.places[own]
    parts = unpack(view.recorder, call, places[:, :3].float(), view.width).cpu()
    middles = parts.nanmedian(dim=1).values  # a token that is pooled over a border tells none
    tiled = bool((places[:, 2] > 0).any())
    names = []
    for image, frame, tile in middles.tolist():
        if image != image:
            names.append("not used")
            continue
        of_many = f", frame {round(frame) + 1}" if call.kind == "video" else ""
        if tiled:
            of_many += f", tile {round(tile)}" if tile > 0 else ", whole"
        names.append(f"{_KINDS[call.kind]} {round(image) + 1}{of_many}")
    return names
