"""In which layers vision tokens matter least, as ShortV finds it: by freezing one layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtw_eval.anatomy import find_anatomy
from vtw_eval.methods.shortv import ShortV


@dataclass(frozen=True)
class LayerOrder:
    """What was found on some samples."""

    divergence: Tensor
    """float64 ``[samples, layers]``, in nats: of the unchanged model's first token from that with one layer frozen."""

    @property
    def mean(self) -> Tensor:
        """Mean over samples, ``[layers]``; the larger, the more a layer contributes."""
        return self.divergence.mean(dim=0)

    @property
    def order(self) -> tuple[int, ...]:
        """All layers, those first that contribute least; of equal ones the later."""
        values = self.mean.tolist()
        return tuple(sorted(range(len(values)), key=lambda layer: (values[layer], -layer)))

    def method(self, n: int) -> ShortV:
        """Return ShortV with the first ``n`` layers of this order."""
        return ShortV(order="-".join(map(str, self.order[:n])))


@torch.no_grad()
def find_order(
    model: nn.Module,
    samples: Iterable[Mapping[str, Any]],
    *,
    allow_untested: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> LayerOrder:
    """Find how much each layer contributes by updating vision tokens.

    A layer's contribution is the KL divergence of the first answered token under the unchanged model from that of the
    model in which this layer alone leaves vision tokens as they are (ShortV, https://arxiv.org/abs/2504.00502; its
    authors take 20 documents of GQA and 20 of Flickr30k). Each sample is run once for each layer and once more.

    Parameters
    ----------
    model
        A transformers vision-language model.
    samples
        Keyword arguments of its forward, each a batch of prompts padded on the left.
    allow_untested
        Go on with a model family that the test-suite does not cover.
    advance
        Called after each batch, for a progress bar.

    Raises
    ------
    ValueError
        Without any sample, and see :func:`vtw_eval.engine.install`.

    Examples
    --------
    >>> found = find_order(model, samples)        # doctest: +SKIP
    >>> str(found.method(4))                      # doctest: +SKIP
    'shortv,order=9-1-7-3'
    """
    layers = find_anatomy(model).num_layers
    rows: list[Tensor] = []
    for sample in samples:
        full = _first_token(model, sample)
        found = []
        for layer in range(layers):
            with ShortV(order=str(layer))(model, allow_untested=allow_untested):
                other = _first_token(model, sample)
            found.append((full.exp() * (full - other)).sum(dim=-1))
        rows.append(torch.stack(found, dim=1).cpu())
        advance()
    if not rows:
        raise ValueError("there are no samples: layers are ordered by how answers change.")
    return LayerOrder(torch.cat(rows))


def _first_token(model: nn.Module, sample: Mapping[str, Any]) -> Tensor:
    """Return the log probabilities of the first token of each row's answer, float64 ``[rows, vocabulary]``."""
    logits: Tensor = model(**{**sample, "use_cache": False}).logits
    return logits[:, -1].double().log_softmax(dim=-1)
