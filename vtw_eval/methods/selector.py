"""Methods that choose vision tokens one after the other, by what enters the decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vtw_eval.engine import LayerView, Reads
from vtw_eval.methods.base import Asked
from vtw_eval.methods.scorer import Scorer


@dataclass(frozen=True, kw_only=True)
class Selector(Scorer):
    """Base of methods that choose tokens by their similarities to each other, each by those before it.

    All vision tokens of a row are one set, also of several images. A subclass declares its key and :meth:`choose`.

    Parameters
    ----------
    k
        Number of layers that see all vision tokens.
    r
        Share of the vision tokens that is removed; 0.5 unless ``tokens`` is given.
    tokens
        Number of vision tokens that stay for each image, instead of ``r``; the images of a row share their sum.
    """

    reads = Reads.HIDDEN

    k: int = 0

    def choose(self, features: Tensor, question: Tensor, count: int) -> Tensor:
        """Return the numbers of the chosen tokens, in the order in which they are chosen, long ``[count]``.

        Parameters
        ----------
        features
            Hidden states of the row's vision tokens, ``[tokens, width]``, one or more.
        question
            Those of the text behind the last vision token, ``[n, width]``.
        count
            How many, one or more, at most as many as there are.
        """
        raise NotImplementedError

    def pick(self, view: LayerView, row: int, places: Tensor, count: int) -> Tensor:
        """Return the numbers of the chosen ones of a row's vision tokens, see :meth:`choose`.

        Parameters
        ----------
        view
            What may be looked at.
        row
            The row.
        places
            Where its vision tokens stand, long ``[tokens]``.
        count
            How many, one or more.
        """
        features, question = view.hidden[row, places], view.hidden[row, view.instruction[row].to(view.hidden.device)]
        return self.choose(features, question, count)

    def own_flops(self, asked: Asked) -> Mapping[str, int]:
        """Similarities: each vision token of a row with each, ``2 v v hidden``."""
        return {"similarities": sum(2 * v**2 * asked.hidden for v in asked.before.tolist())}

    def score(self, view: LayerView) -> Tensor:
        """Chosen tokens from the first to the last, the others below them."""
        score = torch.zeros(view.vision.shape, device=view.hidden.device)
        for row, count in enumerate(self.kept(view).tolist()):
            places = view.vision[row].nonzero().flatten().to(score.device)
            if left := min(count, len(places)):
                chosen = places[self.pick(view, row, places, left)]
                score[row, chosen] = torch.arange(len(chosen), 0, -1, device=score.device, dtype=score.dtype)
        return score


def first_largest(values: Tensor) -> Tensor:
    """Return the number of the first of the largest of ``[n]`` values; ``argmax`` promises no order."""
    return (values == values.max()).to(torch.uint8).argmax()
