"""Prompts, layouts (which prompt token stands in which slot of a layer) and the moves between them."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The tokens of one layer: slot ``j`` of row ``b`` holds the prompt's token ``index[b, j]`` if ``valid[b, j]``.

    Kept tokens stand at the right of a row, in their original order. The slots to their left, if any, are padding:
    they hold removed tokens, whose values are finite but seen by no other token.
    """

    index: Tensor
    """Long ``[rows, slots]``; the entries of a row differ from each other."""
    valid: Tensor
    """Boolean ``[rows, slots]``."""
    padded: bool
    """Whether any slot is padding."""
    size: Tensor | None = None
    """How many tokens of the prompt a slot stands for, ``[rows, slots]``; None when nothing was merged."""
    positions: Tensor | None = None
    """Rearranged positions, ``[..., rows, slots]``; None when positions are kept."""
    shift: Tensor | None = None
    """Original minus rearranged position of a row's last token, ``[..., rows]``; None when positions are kept."""
    into: Tensor | None = None
    """Place of the prompt's token with which each of them goes on, long ``[rows, prompt tokens]``: itself, the one
    that it was merged into, or -1 where it is gone; None when no method has told."""

    @property
    def slots(self) -> int:
        """Number of slots, padding included."""
        return self.index.shape[1]

    @property
    def plain(self) -> bool:
        """Whether a decode step that needs no mask for all tokens needs none here, nor other positions."""
        return not self.padded and self.size is None and self.shift is None

    def rows(self, indices: Tensor) -> Layout:
        """Return the layout of some rows, in that order."""
        shift = None if self.shift is None else self.shift[..., indices]
        size = None if self.size is None else self.size[indices]
        into = None if self.into is None else self.into[indices]
        return Layout(self.index[indices], self.valid[indices], self.padded, size, None, shift, into)

    def begin(self, slots: int) -> Layout:
        """Return the first slots."""
        size = None if self.size is None else self.size[:, :slots]
        return Layout(self.index[:, :slots], self.valid[:, :slots], self.padded, size, None, self.shift)


@dataclass(frozen=True)
class Prompt:
    """A batch of prompts."""

    valid: Tensor
    """Boolean ``[rows, tokens]``, False for padding on either side."""
    vision: Tensor
    """Boolean ``[rows, tokens]``, True for vision tokens."""
    ids: Tensor | None
    """Token ids, ``[rows, tokens]``; None if unknown."""
    ends: Tensor | None = None
    """Place after each row's last token of the prompt, long ``[rows]``, where tokens of an answer follow it in the same
    pass: a generation without cache, an option to be scored, a draft to be checked. None where none follow."""

    @property
    def length(self) -> int:
        """Number of tokens, padding included."""
        return self.valid.shape[1]

    def last(self) -> Tensor:
        """Place of each row's last token that is not of an answer, long ``[rows]``."""
        return self._last

    @functools.cached_property
    def _last(self) -> Tensor:
        return last_valid(self.given)

    @functools.cached_property
    def given(self) -> Tensor:
        """Boolean ``[rows, tokens]``: tokens that are neither padding nor of an answer."""
        if self.ends is None:
            return self.valid
        return self.valid & ~self.answer(torch.arange(self.length, device=self.valid.device).expand_as(self.valid))

    @functools.cached_property
    def instruction(self) -> Tensor:
        """Boolean ``[rows, tokens]``: the text behind the last vision token, all of it where there is none."""
        return (self.vision.flip(1).cumsum(dim=1).flip(1) == 0) & self.given

    def answer(self, places: Tensor) -> Tensor:
        """Return which places, long ``[rows, n]``, are after the prompt's last token; boolean of that shape."""
        if self.ends is None:
            return torch.zeros_like(places, dtype=torch.bool)
        return places >= self.ends.to(places.device)[:, None]

    def rows(self, indices: Tensor) -> Prompt:
        """Return some rows, in that order."""
        ids = None if self.ids is None else self.ids[indices.to(self.ids.device)]
        ends = None if self.ends is None else self.ends[indices.to(self.ends.device)]
        return Prompt(self.valid[indices], self.vision[indices], ids, ends)

    def begin(self, length: int) -> Prompt:
        """Return the first ``length`` tokens of all rows, none of them of an answer."""
        ids = None if self.ids is None else self.ids[:, :length]
        return Prompt(self.valid[:, :length], self.vision[:, :length], ids)


@dataclass
class Reduction:
    """A batch of prompts and the layout of each layer, None where a layer sees the whole prompt."""

    prompt: Prompt
    layouts: list[Layout | None]

    @functools.cached_property
    def plain(self) -> bool:
        """Whether no layer needs a mask or other positions in a decode step; to be asked after the prefill only."""
        return all(layout is None or layout.plain for layout in self.layouts)

    @functools.cached_property
    def gone(self) -> tuple[int, ...]:
        """How many slots fewer than the prompt each layer has; to be asked after the prefill only."""
        return tuple(self.missing(layer) for layer in range(len(self.layouts)))

    def missing(self, layer: int) -> int:
        """Return how many slots fewer than the prompt a layer has."""
        layout = self.layouts[layer]
        return 0 if layout is None else self.prompt.length - layout.slots

    def rows(self, indices: Tensor) -> Reduction:
        """Return the reduction of some rows; layers that shared a layout still do."""
        made = {id(layout): layout.rows(indices) for layout in self.layouts if layout is not None}
        return Reduction(self.prompt.rows(indices), [None if x is None else made[id(x)] for x in self.layouts])

    def begin(self, length: int) -> Reduction:
        """Return the reduction of the first ``length`` tokens, which are all but the last of an answer, in all rows."""
        fewer = self.prompt.length - length
        made = {id(x): x.begin(x.slots - fewer) for x in self.layouts if x is not None}
        return Reduction(self.prompt.begin(length), [None if x is None else made[id(x)] for x in self.layouts])

    def kept(self, layer: int) -> Tensor:
        """Boolean ``[rows, tokens]``: the prompt's tokens that enter a layer, padding left out."""
        layout = self.layouts[layer]
        if layout is None:
            return self.prompt.valid
        return torch.zeros_like(self.prompt.valid).scatter(1, layout.index, layout.valid)


def choose(keep: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Turn a keep mask into right-aligned slots.

    Parameters
    ----------
    keep
        Boolean ``[rows, tokens]``.

    Returns
    -------
    order : Tensor
        Long ``[rows, slots]``, the token that stands in a slot.
    valid : Tensor
        Boolean ``[rows, slots]``.
    padded : bool
        Whether any slot is padding.

    Raises
    ------
    ValueError
        If a row keeps nothing.
    """
    fewest, slots = torch.stack(torch.aminmax(keep.sum(dim=1))).tolist()
    if fewest == 0:
        raise ValueError("a method left a row without any token.")
    return *right_aligned(keep, slots), fewest != slots


def right_aligned(keep: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """Return which tokens stand in the last ``slots`` slots when the kept ones go to the right, and which are kept."""
    order = keep.to(torch.uint8).argsort(dim=1, stable=True)[:, keep.shape[1] - slots :]
    return order, keep.gather(1, order)


def last_valid(valid: Tensor) -> Tensor:
    """Return the place of the last True of each row, long ``[rows]``."""
    return valid.shape[1] - 1 - valid.flip(1).to(torch.uint8).argmax(dim=1)


def last_slot(layout: Layout, prompt: Prompt) -> Tensor:
    """Return the slot of each row's last token of the prompt that is left, long ``[rows]``."""
    if prompt.ends is None:
        return torch.full_like(layout.index[:, 0], layout.slots - 1)
    return last_valid(layout.valid & ~prompt.answer(layout.index))


def advance(layout: Layout | None, keep: Tensor) -> tuple[Layout, Tensor]:
    """Return the layout after a choice among the tokens of ``layout``, and the chosen slots of the old layout."""
    order, valid, padded = choose(keep)
    index = order if layout is None else layout.index.gather(1, order)
    return Layout(index, valid, padded), order


def merged_into(layout: Layout | None, keep: Tensor, into: Tensor | None, length: int) -> Tensor | None:
    """Return the places of :attr:`Layout.into` after a choice.

    Parameters
    ----------
    layout
        Before it; None for the whole prompt.
    keep
        Boolean ``[rows, slots]``: which of the tokens go on.
    into
        Long ``[rows, slots]``: the slot with which each goes on; None if the method does not tell.
    length
        Of the prompt.
    """
    before = None if layout is None else layout.into
    if into is None and before is None:
        return None
    rows, slots = keep.shape
    target = torch.arange(slots, device=keep.device).expand(rows, -1) if into is None else into.to(keep.device)
    place = target if layout is None else layout.index.gather(1, target)
    place = torch.where(keep.gather(1, target), place, -1)
    if layout is None:
        return place
    moved = layout.index.new_full((rows, length), -1).scatter(1, layout.index, torch.where(layout.valid, place, -1))
    return moved if before is None else torch.where(before >= 0, moved.gather(1, before.clamp(min=0)), -1)


def rearranged(layout: Layout, positions: Tensor) -> Layout:
    """Return the layout with the kept tokens of each row numbered without gaps, from the first one's position on.

    Parameters
    ----------
    layout
        The kept tokens.
    positions
        Positions of the prompt, ``[..., 1 or rows, tokens]`` (several axes for M-RoPE).
    """
    kept = pick(positions, layout.index, -1)
    before = (layout.slots - layout.valid.sum(dim=1, keepdim=True)).to(positions.device)
    rank = (torch.arange(layout.slots, device=positions.device) - before).clamp(min=0)
    start = kept.gather(-1, before.expand(*kept.shape[:-1], 1))
    new = start + rank
    return replace(layout, positions=new, shift=kept[..., -1] - new[..., -1])


def pick(tensor: Tensor, index: Tensor, dim: int) -> Tensor:
    """Select per row along ``dim``, the batch axis (of size 1 or rows) standing right before it.

    Parameters
    ----------
    tensor
        ``[..., 1 or rows, tokens, ...]``.
    index
        Long ``[rows, slots]``.
    dim
        Negative number of the token axis.

    Returns
    -------
    Tensor
        ``[..., rows, slots, ...]``.
    """
    index = index.to(tensor.device)
    if index.shape[0] == 1:
        return tensor.index_select(dim, index[0])
    batch = tensor.movedim((dim - 1, dim), (0, 1))
    batch = batch.expand(index.shape[0], *batch.shape[1:])
    rows = torch.arange(index.shape[0], device=tensor.device)[:, None]
    return batch[rows, index].movedim((0, 1), (dim - 1, dim))


def spread(tensor: Tensor, layout: Layout, length: int, dim: int) -> Tensor:
    """Put slots back to their places in the prompt, zeros elsewhere; what follows the slots along ``dim`` stays.

    Parameters
    ----------
    tensor
        Batch first, ``dim`` holding the layout's slots and perhaps generated tokens after them.
    layout
        Which prompt token a slot holds.
    length
        Length of the prompt.
    dim
        The token axis.
    """
    tensor = tensor.movedim(dim, 1)
    index, slots, since = layout.index.to(tensor.device), tensor[:, : layout.slots], tensor[:, layout.slots :]
    if layout.padded:
        slots = slots * layout.valid.to(tensor.device).view(*index.shape, *(1,) * (tensor.ndim - 2))
    rows = torch.arange(tensor.shape[0], device=tensor.device)[:, None]
    full = tensor.new_zeros(tensor.shape[0], length, *tensor.shape[2:]).index_put_((rows, index), slots)
    return (torch.cat([full, since], dim=1) if since.shape[1] else full).movedim(1, dim)
