"""The passes of VTW at every k: over the questions, then over each further word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtw_eval.engine.calls import POSITIONS, changed
from vtw_eval.methods.vtw.curve_state import Curve


@dataclass
class Questions:
    """The questions of each prefix, packed into one row; a candidate has the text behind the image in front of them."""

    last_only: ClassVar[bool] = True

    curve: Curve

    @property
    def order(self) -> Tensor:
        """Places in the questions."""
        return self.curve.pack.order

    def slots(self, gone: int) -> int:
        """Return how many there are; all of them stay."""
        return self.curve.pack.ids.shape[1]

    def leave(self, k: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Let a candidate begin as a copy of the row."""
        return torch.cat([self.curve.entered[k].hidden.to(hidden), hidden], dim=1), hidden

    def row_mask(self, gone: int) -> Tensor:
        """Let each question see its prefix and itself."""
        pack = self.curve.pack
        return pack.mask(pack.owner[:, :0], pack.owner, pack.order)

    def candidate_mask(self) -> Tensor:
        """Let text behind the image see that in front of it, and questions both and themselves."""
        curve, text = self.curve, self.curve.text
        questions = text.mask(text.owner[:, :0], text.owner, text.order)
        before, valid = self.curve.before.shape[1], curve.behind_valid
        count = valid.shape[1]
        itself = torch.eye(count, dtype=torch.bool, device=valid.device)
        causal = itself.cumsum(dim=1).bool().T
        sees = torch.zeros(len(valid), 1, count, questions.shape[-1], dtype=torch.bool, device=valid.device)
        sees[..., :before] = (valid[:, :, None] & text.valid[:, None, :before])[:, None]
        sees[..., before : before + count] = ((valid[:, :, None] & valid[:, None, :] & causal) | itself)[:, None]
        return torch.cat([sees, questions], dim=2)

    def candidate_part(self, i: int, name: str, part: Tensor, number: int) -> Tensor:
        """Return those of the text behind the image as they were, then the row's."""
        entered = self.curve.entered[i]
        source = entered.positions if name == POSITIONS else (entered.embeddings or (None, None))[number]
        if source is None:
            raise changed(f"decoder layers got no {name} before")
        axis = -2 if name == POSITIONS else -3
        rows = max(source.shape[axis], part.shape[axis])
        dim = -1 if name == POSITIONS else -2
        return torch.cat([_rows(source, axis, rows), _rows(part, axis, rows)], dim=dim)

    def ends(self, states: Tensor) -> Tensor:
        """Return the last slots."""
        return states[:, -self.curve.pack.most :]


@dataclass
class Words:
    """The next word of each question at each k: in the row by ascending k, the unchanged model's last."""

    last_only: ClassVar[bool] = False

    curve: Curve
    made: int
    """How many words there are so far, those of this pass among them."""

    @property
    def order(self) -> Tensor:
        """Place of the words behind their prefixes, by slot of the row."""
        pack = self.curve.pack
        return (pack.order[:, -pack.most :] + self.made).repeat(1, len(self.curve.ks) + 1)

    def slots(self, gone: int) -> int:
        """Return those of the k that are still there."""
        return (len(self.curve.ks) + 1 - gone) * self.curve.pack.most

    def leave(self, k: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Let the first ones leave."""
        most = self.curve.pack.most
        return hidden[:, :most], hidden[:, most:]

    def row_mask(self, gone: int) -> Tensor:
        """Let each see the prefix, its question, and the words before it of its k and question."""
        pack, slots = self.curve.pack, self.slots(gone)
        before = pack.mask(pack.owner, pack.last, pack.order[:, -pack.most :])[..., : -pack.most]
        own = torch.eye(slots, dtype=torch.bool, device=before.device).repeat(1, self.made)
        before = before.repeat(1, 1, slots // pack.most, 1)
        return torch.cat([before, own.expand(len(before), 1, -1, -1)], dim=3)

    def candidate_mask(self) -> Tensor:
        """Let each see the same without vision tokens."""
        text = self.curve.text
        seen = torch.cat([text.owner, text.last.repeat(1, self.made - 1)], dim=1)
        return text.mask(seen, text.last, text.order[:, -text.most :])

    def candidate_part(self, i: int, name: str, part: Tensor, number: int) -> Tensor:
        """Return those of one k, the same for all."""
        most = self.curve.pack.most
        return part[..., -most:] if name == POSITIONS else part[..., -most:, :]

    def ends(self, states: Tensor) -> Tensor:
        """Return all of them."""
        return states


def _rows(tensor: Tensor, dim: int, rows: int) -> Tensor:
    """Return a tensor with so many entries along its batch axis, which are one or these."""
    return tensor if tensor.shape[dim] == rows else tensor.repeat_interleave(rows, dim=dim)
