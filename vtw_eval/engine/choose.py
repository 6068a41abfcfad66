"""Asking a method which tokens go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from vtw_eval.anatomy import Anatomy
from vtw_eval.engine.arguments import Arguments
from vtw_eval.engine.layout import Layout, advance, last_slot, merged_into, pick, rearranged
from vtw_eval.engine.probes import (
    Heads,
    last_query_attention,
    mean_attention,
    mean_query_attention,
    rotated_keys,
    rotation,
    rotation_free_keys,
    unrotated_attention,
    values,
)
from vtw_eval.engine.step import Step
from vtw_eval.engine.view import LayerView, Merge, Reducer, check_answer


class Chooser:
    """Asks a method, and turns its answers into layouts.

    Parameters
    ----------
    method
        The method.
    anatomy
        The model.
    arguments
        Cuts what layers get; probes of a layer see it as it will run.
    """

    def __init__(self, method: Reducer, anatomy: Anatomy, arguments: Arguments) -> None:
        self.method = method
        self.anatomy = anatomy
        self.arguments = arguments

    def plan(self, step: Step, source: Tensor, asked: frozenset[int]) -> None:
        """Make all choices of a method that looks at token roles only, before any layer runs.

        The number of tokens that are left shapes every later tensor, so the host must wait for it. Here nothing is
        under way yet; in the middle of the layers a GPU would run dry.

        Parameters
        ----------
        step
            The pass, which keeps the choices.
        source
            What enters the decoder, ``[rows, tokens, ...]``.
        asked
            Layers before which the method is asked.
        """
        layout: Layout | None = None
        for i in sorted(asked):
            slots = step.queries if layout is None else layout.slots
            nothing = torch.empty(len(source), slots, 0, dtype=source.dtype, device=source.device)
            choice = self._choose(i, step, layout, nothing, {})
            step.planned[i] = None if choice is None else choice[:2]
            layout = layout if choice is None else choice[0]

    def ask(self, i: int, step: Step, hidden: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """Return the hidden states of the tokens that go on into layer ``i``; the step gets their layout.

        Parameters
        ----------
        i
            The layer about to run.
        step
            The pass.
        hidden
            What would enter the layer, ``[rows, slots, width]``.
        kwargs
            The layer's other arguments, not cut.

        Raises
        ------
        ValueError
            If the answer of the method is none, or leaves a row without its prompt.
        """
        if i in step.planned:
            planned = step.planned[i]
            choice = None if planned is None else (*planned, hidden)
        else:
            choice = self._choose(i, step, step.layout, hidden, kwargs)
        if choice is None:
            return hidden
        layout, chosen, hidden = choice
        if self.method.positions == "rearrange":
            positions = step.rotary[0].positions if step.rotary else kwargs.get("position_ids")
            if positions is None:
                raise ValueError("position='rearrange' needs position ids, which this model does not pass on.")
            layout = rearranged(layout, positions)
        step.layout = layout
        return pick(hidden, chosen, -2)

    def _choose(
        self, i: int, step: Step, layout: Layout | None, hidden: Tensor, kwargs: Mapping[str, Any]
    ) -> tuple[Layout, Tensor, Tensor] | None:
        """Return the layout after a choice, the chosen slots of the one before, and the hidden states to choose from.

        None if all go on as they are.
        """
        view = self._view(i, step, layout, hidden, kwargs)
        prompt, valid = step.reduction.prompt, view.valid
        answer = self.method.keep(view)
        merge = answer if isinstance(answer, Merge) else Merge(answer, hidden, None if layout is None else layout.size)
        check_answer(self.method, merge, hidden, i)
        answered = prompt.answer(view.index)
        keep = (merge.keep | answered) & valid
        if prompt.ends is not None and not bool((keep & ~answered).any(dim=1).all()):
            raise ValueError("a method left a row without any token of its prompt.")
        if torch.equal(keep, valid) and not isinstance(answer, Merge):
            return None
        new, chosen = advance(layout, keep)
        new = new if merge.size is None else replace(new, size=merge.size.gather(1, chosen))
        into = merged_into(layout, keep, merge.into, prompt.length)
        new = new if into is None else replace(new, into=into)
        return new, chosen, merge.hidden

    def _check_attends(self, layer: int) -> None:
        """Check that a layer attends to keys of its own, so that there is something to look at.

        Raises
        ------
        ValueError
            If it does not.
        """
        anatomy = self.anatomy
        if anatomy.has_own_keys(layer):
            return
        others = [i for i in range(anatomy.num_layers) if anatomy.has_own_keys(i)]
        kind = "is recurrent" if anatomy.is_recurrent(layer) else f"shares those of layer {anatomy.keys_of(layer)}"
        raise ValueError(
            f"{self.method} looks at attention, keys or values of layer {layer}, which {kind}: in this model only "
            f"layers {', '.join(map(str, others))} have keys of their own."
        )

    def _view(self, i: int, step: Step, layout: Layout | None, hidden: Tensor, kwargs: Mapping[str, Any]) -> LayerView:
        """Return what the method may look at."""
        prompt = step.reduction.prompt
        rows, length = prompt.valid.shape
        if layout is None:
            index = torch.arange(length, device=prompt.valid.device).expand(rows, -1)
            valid, vision, last = prompt.valid, prompt.vision, prompt.last()
        else:
            index, valid = layout.index, layout.valid
            vision, last = prompt.vision.gather(1, index) & valid, last_slot(layout, prompt)

        def entering() -> tuple[Tensor, Mapping[str, Any]]:
            return hidden, kwargs if layout is None else self.arguments.cut(i, step, layout, kwargs)

        def seen(at: int) -> tuple[Tensor, Mapping[str, Any]]:
            self._check_attends(at)
            return entering() if at == i else step.entered[at]

        def probe(at: int) -> Tensor:
            return last_query_attention(self.anatomy.layers[at], *seen(at), self.anatomy.text_config, last, valid)

        def mean_probe(at: int, queries: Tensor, heads: Heads) -> Tensor:
            return mean_attention(self.anatomy.layers[at], *seen(at), self.anatomy.text_config, queries, valid, heads)

        def keys() -> Tensor:
            return rotation_free_keys(self.anatomy.layers[i], *seen(i), self.anatomy.text_config)

        def keys_with_rotation(at: int) -> Tensor:
            return rotated_keys(self.anatomy.layers[at], *seen(at), self.anatomy.text_config)

        def values_before() -> Tensor:
            return values(self.anatomy.layers[i - 1], *seen(i - 1), self.anatomy.text_config)

        def mean_query(queries: Tensor, among: Tensor) -> Tensor:
            return mean_query_attention(self.anatomy.layers[i], *seen(i), self.anatomy.text_config, queries, among)

        def angles() -> tuple[Tensor, Tensor]:
            return rotation(entering()[1])

        def unrotated(among: Tensor) -> Tensor:
            layer = self.anatomy.layers[i - 1]
            return unrotated_attention(layer, *seen(i - 1), self.anatomy.text_config, last, among)

        def last_norm(states: Tensor) -> Tensor:
            norm: Any = self.anatomy.decoder.norm
            return cast(Tensor, norm(states))

        size = torch.ones_like(index, dtype=torch.float32) if layout is None or layout.size is None else layout.size
        return LayerView(
            method=self.method,
            layer=i,
            num_layers=self.anatomy.num_layers,
            states=hidden,
            valid=valid,
            vision=vision,
            index=index,
            prompt=prompt,
            last=last,
            size=size,
            probe=probe,
            mean_probe=mean_probe,
            key_probe=keys,
            rotated_key_probe=keys_with_rotation,
            value_before_probe=values_before,
            mean_query_probe=mean_query,
            rotation_probe=angles,
            unrotated_probe=unrotated,
            last_norm=last_norm,
            history=step.reduction.kept,
            entered=hidden[:, :0] if step.embeddings is None else step.embeddings,
            looks=step.looks,
            tower_view=step.tower,
        )
