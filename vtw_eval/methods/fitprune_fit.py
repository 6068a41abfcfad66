"""FitPrune's table for a model: how many vision tokens leave in each layer, fitted to attention on some samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vtw_eval.anatomy import find_anatomy
from vtw_eval.engine import LayerView, Reads
from vtw_eval.methods.base import Method
from vtw_eval.methods.fitprune import FitPrune

_WIDTH = 0.01
"""Of the interval of alpha at which the authors' search ends."""


@dataclass(frozen=True)
class FittedTable:
    """What was found."""

    vision: int
    """Vision tokens of a prompt."""
    deleted: tuple[int, ...]
    """How many of them leave after each layer."""
    alpha: float
    """Share of either attention that a layer may lose."""
    reduction: float
    """Of what vision tokens cost in the decoder layers."""

    def method(self) -> FitPrune:
        """Return FitPrune with this table."""
        return FitPrune(table="-".join(map(str, (self.vision, *self.deleted))))


@dataclass(frozen=True, kw_only=True)
class _Watch(Method):
    """Keep everything, and note what vision tokens receive in each layer but the last."""

    key: ClassVar[str] = "watch_attention"
    reads = Reads.ATTENTION_BEFORE
    seen: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """By layer: attention received from the text behind the last image, and from vision tokens, ``[rows, tokens]``."""
    vision: list[Tensor] = field(default_factory=list)

    def layers(self, num_layers: int) -> Sequence[int]:
        """All but the first: each is asked of the one before."""
        return range(1, num_layers)

    def keep(self, view: LayerView) -> Tensor:
        """Note both averages."""
        received = [view.attention(view.layer - 1, by, heads="max") for by in (view.instruction, view.vision)]
        self.seen.append((received[0].double().cpu(), received[1].double().cpu()))
        self.vision.append(view.vision.cpu())
        return view.valid


@torch.no_grad()
def fit_table(
    model: nn.Module,
    samples: Iterable[Mapping[str, Any]],
    reduction: float = 0.6,
    *,
    allow_untested: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> FittedTable:
    """Fit FitPrune's table (Ye et al., 2024, https://arxiv.org/abs/2409.10197) to a model.

    In each layer of the unchanged model vision tokens receive attention from the text behind the last image and from
    vision tokens (maximum over heads, mean over queries). For a trial alpha, layer by layer and sample by sample, both
    lists of the tokens that are left, sorted ascending, may lose the longest beginning that leaves 1 - alpha of all
    that this layer's vision tokens received; what both lose leaves. Numbers are averaged over samples and rounded down.
    The smallest alpha, within 0.01, at which vision tokens cost ``1 - reduction`` of what they did is taken. Costs are
    those of the decoder's matrices and attention products among vision tokens; here a token pays for the whole layer
    after which it leaves, the authors' skips its output projection and FFN, so they take a little less away.

    The authors take about 66 samples of LLaVA's training data and publish tables for LLaVA-1.5-7B.

    Parameters
    ----------
    model
        A transformers vision-language model.
    samples
        Keyword arguments of its forward, each a batch of prompts padded on the left.
    reduction
        Share of the cost of vision tokens that is to go, above 0 and below 1.
    allow_untested
        Go on with a model family that the test-suite does not cover.
    advance
        Called after each batch, for a progress bar.

    Raises
    ------
    ValueError
        Without samples, for prompts with no or with different numbers of vision tokens, and if not even alpha = 1 takes
        so much away.

    Examples
    --------
    >>> found = fit_table(model, samples, 0.6)        # doctest: +SKIP
    >>> str(found.method())                           # doctest: +SKIP
    'fitprune,table=576-14-33-89-...'
    """
    check_reduction(reduction)
    anatomy = find_anatomy(model)
    received: list[Tensor] = []
    for sample in samples:
        received += _received(model, sample, allow_untested)
        advance()
    sizes = {each.shape[-1] for each in received}
    if not received or len(sizes) > 1 or 0 in sizes:
        told = ", ".join(map(str, sorted(sizes))) or "no prompt"
        raise ValueError(f"a table is of prompts with one number of vision tokens, 1 or more; these have {told}.")
    [vision] = sizes
    text = anatomy.text_config
    sizes_of = (int(text.hidden_size), int(text.intermediate_size))

    def share(deleted: Sequence[int]) -> float:
        counts = [vision - sum(deleted[:layer]) for layer in range(len(deleted))]
        return sum(_cost(n, *sizes_of) for n in counts) / (len(deleted) * _cost(vision, *sizes_of))

    low, high = 0.0, 1.0
    if (least := share(_deleted(received, high))) > 1 - reduction:
        raise ValueError(
            f"reduction={reduction} is too much: {1 - least:.1%} go at most, since the first layer sees all."
        )
    while high - low > _WIDTH:
        middle = (low + high) / 2
        low, high = (low, middle) if share(_deleted(received, middle)) <= 1 - reduction else (middle, high)
    found = _deleted(received, high)
    return FittedTable(vision, tuple(found), high, 1 - share(found))


def check_reduction(reduction: float) -> None:
    """Raise ``ValueError`` unless so much of the cost of vision tokens can go."""
    if not 0 < reduction < 1:
        raise ValueError(f"reduction={reduction} is out of range: it is a share of the cost, above 0 and below 1.")


def _received(model: nn.Module, sample: Mapping[str, Any], allow_untested: bool) -> list[Tensor]:
    """Return what each row's vision tokens receive in each layer but the last, ``[layers - 1, 2, tokens]``."""
    watch = _Watch()
    with watch(model, allow_untested=allow_untested):
        model(**{**sample, "use_cache": False})
    both = torch.stack([torch.stack(pair) for pair in watch.seen])
    return [both[:, :, row, own] for row, own in enumerate(watch.vision[0])]


def _deleted(received: Sequence[Tensor], alpha: float) -> list[int]:
    """Return how many tokens leave after each layer, the last among them, mean over samples, rounded down."""
    counts = torch.zeros(len(received), received[0].shape[0] + 1)
    for sample, layers in enumerate(received):
        left = torch.ones(layers.shape[-1], dtype=torch.bool)
        for layer, by in enumerate(layers):
            goes = left.clone()
            for values in by:
                goes &= _beginning(values, left, (1 - alpha) * float(values.sum()))
            counts[sample, layer] = int(goes.sum())
            left &= ~goes
    return [math.floor(count + 1e-9) for count in counts.mean(dim=0).tolist()]


def _beginning(values: Tensor, left: Tensor, least: float) -> Tensor:
    """Return which of the tokens that are left can go, the smallest first, so that the rest sum to ``least``."""
    order = values.masked_fill(~left, torch.inf).argsort(stable=True)[: int(left.sum())]
    rest = values[order].flip(0).cumsum(dim=0).flip(0)  # of each and all behind it
    after = torch.cat([rest[1:], rest.new_zeros(1)])
    goes = torch.zeros_like(left)
    goes[order] = after >= least - 1e-12
    return goes


def _cost(tokens: int, hidden: int, ffn: int) -> int:
    """Multiply-adds of a layer on so many tokens: four matrices, two products, a gated FFN."""
    return 4 * tokens * hidden**2 + 2 * tokens**2 * hidden + 3 * tokens * hidden * ffn
