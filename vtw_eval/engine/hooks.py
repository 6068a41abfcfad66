"""Installing a method on a model: the hooks and what they do in a prefill and in a decode step."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from vtw_eval.anatomy import Anatomy, check_support, find_anatomy
from vtw_eval.engine.cache import ReducedCache, check_cache, key_slots, reduce_cache
from vtw_eval.engine.calls import (
    MASK,
    PER_LAYER,
    by_name,
    cache_of,
    cache_of_output,
    changed,
    check_embeddings,
    check_layer_call,
    is_checkpointing,
)
from vtw_eval.engine.layout import Layout, Prompt, Reduction, advance, last_valid, pick, rearranged, spread
from vtw_eval.engine.masks import (
    MaskKind,
    check_bidirectional,
    check_mask,
    check_width,
    mask_kind,
    reduced_mask,
    validity,
)
from vtw_eval.engine.probes import last_query_attention, rotation_free_keys
from vtw_eval.engine.trace import LayerView, Merge, Reducer, Trace, asked_layers, check_answer
from vtw_eval.engine.wrappers import compiled_inside, replaced, uncompiled

_PROMPTS = ("inputs_embeds", "input_ids", "inputs")
"""Under which names ``generate`` takes a prompt, the one that it runs first."""


@dataclass
class _RotaryCall:
    """One call of the rotary module, to be repeated with other positions."""

    output: Any
    positions: Tensor
    again: Callable[[Tensor], Any]


@dataclass
class _Step:
    """One forward pass of the decoder."""

    reduction: Reduction
    decoding: bool
    queries: int
    total: int
    """Length of the sequence after this pass, removed tokens counted."""
    continued: bool = False
    """Whether this is a later step of a generation without cache."""
    layout: Layout | None = None
    """Layout of the current layer in a prefill."""
    planned: dict[int, tuple[Layout, Tensor] | None] = field(default_factory=dict)
    """Layer to choice, for methods that could choose before the pass: the layout and the chosen slots of the one
    before; None where all go on."""
    cache: Cache | None = None
    """The KV cache of this pass: that of the decoder or, if that got none, the one that it made for its layers."""
    ran: int = 0
    """How many hooks on layers have run."""
    entered: dict[int, tuple[Tensor, Mapping[str, Any]]] = field(default_factory=dict)
    """What entered a layer whose attention a method wants to see at the next one."""
    deepstack: tuple[Tensor, Sequence[Tensor]] | None = None
    dtype: torch.dtype = torch.float32
    """Of the hidden states, for masks to build (a quantized layer's weights would tell another)."""
    rotary: list[_RotaryCall] = field(default_factory=list)
    restored: list[Tensor] = field(default_factory=list)
    """Outputs that have the prompt's length already."""
    memo: dict[tuple[Any, ...], tuple[Any, ...]] = field(default_factory=dict)
    cut: tuple[Layout, tuple[Any, ...], dict[str, Any]] | None = None
    """Layout, the model's mask and positions, and what they were cut to, of the layer before."""

    def once(self, layout: Layout, source: Any, make: Callable[[], Any], *more: Any) -> Any:
        """Return ``make()``, computed once for all layers with this layout and this object of the model."""
        key = (id(layout), id(source), *more)
        if key not in self.memo:
            self.memo[key] = (make(), layout, source)  # holding both keeps their ids from being used again
        return self.memo[key][0]


class _Engine:
    """The hooks of one installed method."""

    def __init__(
        self,
        method: Reducer,
        anatomy: Anatomy,
        vision_mask: Tensor | None,
        prompt_ids: Tensor | None,
        answer_mask: Tensor | None,
    ) -> None:
        self.method = method
        self.anatomy = anatomy
        self.vision_mask = vision_mask
        self.prompt_ids = prompt_ids
        self.answer_mask = answer_mask
        self.trace = Trace(method)
        self.asked = asked_layers(method, anatomy.num_layers)
        self.first = min(self.asked, default=anatomy.num_layers)
        self.watched = frozenset(i - 1 for i in self.asked if i and method.looks_back)
        # Whether all layers get the same mask, so that one of them can tell what the others need.
        self.uniform = len(set(getattr(anatomy.text_config, "layer_types", None) or ())) < 2 and all(
            anatomy.sliding_window(i) is None for i in range(anatomy.num_layers)
        )
        self.kind: MaskKind | None = None  # nothing to cut
        if self.asked:
            self.kind = mask_kind(getattr(anatomy.text_config, "_attn_implementation", None))
        self.step: _Step | None = None
        self.seen: Mapping[str, Any] = {}
        self.labels: Tensor | None = None
        self.entered = False
        """Whether the decoder's hook has run in the model's pass under way."""
        self.generating: int | None = None
        """Length of the prompt of the ``generate`` under way."""
        self.uncached: tuple[Tensor, int] | None = None
        self.layer_hooks: dict[int, Any] = {}

    def register(self) -> Iterator[Any]:
        """Register all hooks, yielding their handles."""
        decoder = self.anatomy.decoder
        yield decoder.register_forward_pre_hook(self.before_decoder, with_kwargs=True)
        if self.asked and self.method.positions == "rearrange" and self.anatomy.rotary is not None:
            yield self.anatomy.rotary.register_forward_hook(self.after_rotary, with_kwargs=True)
        yield decoder.register_forward_hook(self.after_decoder)

    def functions(self) -> dict[str, Callable[..., Any]]:
        """Return what takes the place of the model's own functions while the method is installed."""
        model, decoder = self.anatomy.model, self.anatomy.decoder
        made: dict[str, Callable[..., Any]] = {}
        if model is not decoder:
            made["forward"] = self._watched_forward
        if callable(getattr(model, "generate", None)):
            made["generate"] = self._watched_generate
        return {name: make(getattr(model, name)) for name, make in made.items()}

    def _watched_forward(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.entered = False
            try:
                kwargs = self.before_model(args, kwargs)
                output = forward(*args, **kwargs)
                if not self.entered:
                    raise changed("the model, or compiled code around it, has run without its decoder's hooks")
                if self.step is not None:
                    self._restore(output, self.step)
                return output
            finally:
                self.step, self.labels, self.seen = None, None, {}

        return watched

    def _watched_generate(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        first = next(iter(inspect.signature(generate).parameters), None)

        @functools.wraps(generate)
        def watched(*args: Any, **kwargs: Any) -> Any:
            named = {str(first): args[0], **kwargs} if args else kwargs
            prompt = next((named[n] for n in _PROMPTS if isinstance(named.get(n), Tensor)), None)
            self.generating = prompt.shape[1] if prompt is not None and prompt.ndim > 1 else None
            self.uncached = None
            try:
                return generate(*args, **kwargs)
            finally:
                self.generating = None

        return watched

    def hook_layers(self) -> None:
        """Put a hook on each layer from the first choice on; the layers below see everything: no hook, no cost."""
        last = self.anatomy.num_layers
        for i in range(min(self.first, *self.watched, last), last):
            if i not in self.layer_hooks:
                hook = functools.partial(self.before_layer, i)
                self.layer_hooks[i] = self.anatomy.layers[i].register_forward_pre_hook(hook, with_kwargs=True)

    def unhook_layers(self, but: int | None = None) -> None:
        """Take the hooks off the layers, except that of one layer."""
        for i in [i for i in self.layer_hooks if i != but]:
            self.layer_hooks.pop(i).remove()

    # The whole model ----------------------------------------------------------------------------------------------

    def before_model(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Note ids and padding; return the keyword arguments with a copy of the labels, to be blanked later."""
        seen = by_name(self.anatomy.model, args, kwargs)
        self.seen = {name: seen.get(name) for name in ("input_ids", MASK, "labels")}
        if not self.asked:
            return kwargs
        if seen.get("return_dict") is False and (seen.get("output_hidden_states") or seen.get("output_attentions")):
            raise ValueError("output_hidden_states and output_attentions need return_dict=True under a method.")
        if seen.get("labels") is None:
            return kwargs
        if "labels" not in kwargs:
            raise ValueError("pass labels by keyword.")
        self.labels = kwargs["labels"].clone()
        return {**kwargs, "labels": self.labels}

    # The decoder --------------------------------------------------------------------------------------------------

    def before_decoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Begin a pass: a prefill, or a decode step on a cache that a prefill under this method has filled."""
        self.step = None
        self.entered = True
        kwargs = by_name(module, args, kwargs)
        if self.asked and module.training and is_checkpointing(self.anatomy.model, module):
            raise ValueError("methods do not work under gradient checkpointing: switch it off on the model.")
        cache = cache_of(kwargs)
        source = kwargs["input_ids"] if kwargs.get("inputs_embeds") is None else kwargs["inputs_embeds"]
        queries = source.shape[1]
        past = int(cache.get_seq_length()) if cache is not None else 0
        for mask in (self.seen.get(MASK), kwargs.get(MASK)):
            check_width(mask, past, queries)
        if not past:
            self.hook_layers()
            self.step = self._prefill(source, kwargs, cache)
        elif isinstance(cache, ReducedCache):
            self.step = _Step(cache.reduction, decoding=True, queries=queries, total=past + queries, cache=cache)
            self._refuse_late_vision(past, queries)
        elif self.asked:
            raise ValueError(
                "the KV cache was filled without this method, so it holds tokens that should be gone: "
                "start from an empty cache."
            )
        return (), kwargs

    def after_decoder(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Put the output back to the prompt's length, and blank labels that no token predicts any more."""
        step = self.step
        if step is None:
            return None
        self._check_pass(step, output)
        if not step.decoding:
            self._record(step)
        if step.layout is not None:
            prompt, layout = step.reduction.prompt, step.layout
            hidden = output[0] if isinstance(output, tuple) else output.last_hidden_state
            full = spread(hidden, layout, prompt.length, 1)
            # An answer begins at the prompt's last place: it shows the last surviving token, whichever that is.
            rows = torch.arange(full.shape[0], device=full.device)
            last = _last_slot(layout, prompt).to(full.device)
            full.index_put_((rows, prompt.last().to(full.device)), hidden[rows, last])
            step.restored.append(full)
            if isinstance(output, tuple):
                output = (full, *output[1:])
            else:
                output.last_hidden_state = full
            if self.labels is not None:
                kept = step.reduction.kept(-1).scatter(1, prompt.last()[:, None], True).to(self.labels.device)
                self.labels[:, 1:].masked_fill_(~kept[:, :-1], -100)
        self._restore(output, step)
        return output

    def _record(self, step: _Step) -> None:
        """Note what a prefill did to its prompt; tokens that ``generate`` had appended are none of the prompt's."""
        reduction = step.reduction
        if self.generating is not None and self.generating < step.total:
            reduction = reduction.begin(self.generating)
            if isinstance(step.cache, ReducedCache):  # it may be told to forget them
                step.cache.reduction = reduction
        if not step.continued:
            self.trace.reduction = reduction
            self.trace.prefills += 1

    def _check_pass(self, step: _Step, output: Any) -> None:
        """Check what a pass has left behind: every layer was asked, and the cache holds what the layouts say."""
        if not step.decoding and step.ran != len(self.layer_hooks):
            raise changed(f"{step.ran} of the {len(self.layer_hooks)} hooks on decoder layers have run")
        given = cache_of_output(output)
        if step.cache is None and not self.layer_hooks:
            step.cache = given  # made by the decoder, and no hook has seen it
        if given is not None and given is not step.cache:
            raise changed("the decoder gives back another KV cache than its layers got")
        if step.cache is None:
            return
        if self.asked and not (isinstance(step.cache, ReducedCache) and step.cache.reduction is step.reduction):
            raise changed("the KV cache was not told which tokens are gone")
        check_cache(step.cache, step.reduction, step.total)

    def _restore(self, output: Any, step: _Step) -> None:
        """Bring recorded hidden states and attentions to the prompt's length, in place."""
        if not hasattr(output, "keys"):
            return
        layouts, prompt = step.reduction.layouts, step.reduction.prompt
        for name in ("hidden_states", "attentions"):
            if output.get(name) is None or (name == "hidden_states" and step.decoding):
                continue
            # hidden states begin with the input of layer 0; entry i is the output of layer i - 1
            expected = [layouts[0], *layouts] if name == "hidden_states" else layouts
            entries = list(output[name])
            for i, (entry, layout) in enumerate(zip(entries, expected, strict=True)):
                if entry is None or layout is None or any(entry is done for done in step.restored):
                    continue
                if name == "hidden_states":
                    entry = spread(entry, layout, prompt.length, 1)
                else:
                    entry = _spread_keys(entry, layout, prompt.length, step.total)
                    entry = entry if step.decoding else spread(entry, layout, prompt.length, 2)
                step.restored.append(entry)
                entries[i] = entry
            output[name] = tuple(entries)

    def _prefill(self, source: Tensor, kwargs: dict[str, Any], cache: Cache | None) -> _Step:
        rows, length = source.shape[:2]
        ids = self.seen.get("input_ids", kwargs.get("input_ids"))
        if ids is None and self.prompt_ids is not None:
            ids = _for_rows("prompt_ids", self.prompt_ids, rows, length)
        elif ids is not None and ids.shape != (rows, length):
            raise ValueError(f"input_ids have shape {tuple(ids.shape)}, the decoder gets {(rows, length)}.")
        mask = self.seen.get(MASK)
        device = torch.device("cpu") if source.is_meta else source.device  # choices need values
        valid = validity(kwargs.get(MASK) if mask is None else mask, rows, length, device)
        vision = self._vision(ids, rows, length, device) & valid
        cached = cache is not None or bool(kwargs.get("use_cache"))
        prompt_length, continued = self._prompt_length(ids, length, cached)
        vision[:, prompt_length:] = False  # placeholder ids in an answer show nothing
        prompt = Prompt(valid, vision, ids, self._ends(valid, vision, prompt_length))
        if self.asked and bool(vision.gather(1, prompt.last()[:, None]).any()):
            raise ValueError("the prompt ends in a vision token: there is no text token to answer from.")
        reduction = Reduction(prompt, [None] * self.anatomy.num_layers)
        step = _Step(reduction, decoding=False, queries=length, total=length, continued=continued, cache=cache)
        features = kwargs.get("deepstack_visual_embeds")
        if self.asked and features is not None and len(features) > self.first:
            # Vision features that the decoder adds after the layers before any removal stay with it; the later ones
            # are added in before_layer, where they still fit the tokens that are left.
            if len(features) >= self.anatomy.num_layers:
                raise ValueError("vision features added after the last layer are not supported.")
            step.deepstack = (kwargs["visual_pos_masks"], features)
            kwargs["deepstack_visual_embeds"] = features[: self.first]
        if self.method.plans_ahead:
            self._plan(step, source)
        return step

    def _plan(self, step: _Step, source: Tensor) -> None:
        """Make all choices of a method that looks at token roles only, before any layer runs.

        The number of tokens that are left shapes every later tensor, so the host must wait for it. Here nothing is
        under way yet; in the middle of the layers a GPU would run dry.
        """
        layout: Layout | None = None
        for i in sorted(self.asked):
            slots = step.queries if layout is None else layout.slots
            nothing = torch.empty(len(source), slots, 0, dtype=source.dtype, device=source.device)
            choice = self._choose(i, step, layout, nothing, {})
            step.planned[i] = None if choice is None else choice[:2]
            layout = layout if choice is None else choice[0]

    def _vision(self, ids: Tensor | None, rows: int, length: int, device: torch.device) -> Tensor:
        if self.vision_mask is not None:
            vision = self.vision_mask.to(device=device, dtype=torch.bool)
            return _for_rows("vision_mask", vision, rows, length)
        if ids is None or not self.anatomy.vision_token_ids:
            raise ValueError(
                "cannot tell which tokens are vision tokens: pass input_ids or, for a prompt of inputs_embeds, "
                "vision_mask=... to the method."
            )
        return self.anatomy.is_vision(ids).to(device)

    def _prompt_length(self, ids: Tensor | None, length: int, cached: bool) -> tuple[int, bool]:
        """Return how many of the tokens are the prompt's, and whether this is a later step of a generation.

        ``generate`` appends its own tokens when it has no cache, and a draft when it checks one; a loop of the caller
        without cache is known by the prompt that it repeats.

        Raises
        ------
        ValueError
            If the pass has less than the prompt of ``generate``.
        """
        if self.generating is not None:
            if length < self.generating:
                raise ValueError(
                    f"generate() got a prompt of {self.generating} tokens and runs {length} of them: a method has to "
                    "see the prompt as a whole, so prefill_chunk_size and guidance_scale are not supported."
                )
            return self.generating, length > self.generating and not cached
        if ids is None or cached:
            self.uncached = None
            return length, False
        if self.uncached is not None:
            prompt, before = self.uncached
            if ids.shape == (prompt.shape[0], before + 1) and torch.equal(ids[:, : prompt.shape[1]], prompt):
                self.uncached = (prompt, length)
                return prompt.shape[1], True
        self.uncached = (ids, length)
        return length, False

    def _ends(self, valid: Tensor, vision: Tensor, prompt_length: int) -> Tensor | None:
        """Return the place after the last token of each row's prompt, None where no answer follows in any row.

        Raises
        ------
        ValueError
            If the caller's ``answer_mask`` is not the end of each row, or leaves no prompt.
        """
        rows, length = valid.shape
        if prompt_length < length:
            return torch.full((rows,), prompt_length, device=valid.device)
        labels = self.seen.get("labels")
        if self.answer_mask is not None:
            answer = _for_rows("answer_mask", self.answer_mask.to(device=valid.device, dtype=torch.bool), rows, length)
        elif labels is not None and labels.shape == valid.shape:
            answer = (labels != -100).to(valid.device)
        else:
            return None
        answer = answer & valid
        begun = answer.cumsum(dim=1) > 0
        whole = ~begun & valid  # the prompt, if the answer is one
        right = (whole & ~vision).any(dim=1) & ~(begun & vision).any(dim=1)
        if self.answer_mask is None:
            begun = begun & right[:, None]  # labels of a whole conversation: no part of it is the answer
        elif not bool(right.all()) or bool((begun & valid & ~answer).any()):
            raise ValueError("answer_mask must be the last tokens of each row, after a prompt with all vision tokens.")
        return (~begun).sum(dim=1) if bool(begun.any()) else None

    def _refuse_late_vision(self, past: int, queries: int) -> None:
        ids = self.seen.get("input_ids")
        if ids is None or queries == 1:
            return
        given = None if self.generating is None else max(self.generating - past, 0)  # what follows is a draft
        if bool(self.anatomy.is_vision(ids[:, -queries:][:, :given]).any()):
            raise ValueError("vision tokens after the prefill (chunked prefill, a later turn) are not supported.")

    @functools.cached_property
    def rotary_signature(self) -> inspect.Signature:
        """How the rotary module is called; looked up once, since that is slow."""
        assert self.anatomy.rotary is not None
        return inspect.signature(self.anatomy.rotary.forward)

    def after_rotary(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Note how the decoder asked for its position embeddings, to ask again for rearranged positions."""
        if self.step is None:
            return
        bound = self.rotary_signature.bind(*args, **kwargs)

        def again(positions: Tensor) -> Any:
            bound.arguments["position_ids"] = positions
            return module.forward(*bound.args, **bound.kwargs)

        self.step.rotary.append(_RotaryCall(output, bound.arguments["position_ids"], again))

    # One layer ----------------------------------------------------------------------------------------------------

    def before_layer(self, i: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Give layer ``i`` its tokens, mask and positions."""
        step = self.step
        if step is None:
            return None
        if len(args) > 1:
            kwargs = by_name(module, args, kwargs)
            args = (kwargs.pop(next(iter(kwargs))),)
        kwargs = dict(kwargs)
        hidden = args[0] if args else kwargs.pop("hidden_states")
        check_layer_call(i, kwargs)
        step.dtype = hidden.dtype
        step.ran += 1
        if step.decoding:
            return self._decode(i, step, hidden, kwargs)
        hidden = self._add_deepstack(i, step, hidden)
        if i in self.asked:
            hidden = self._ask(i, step, hidden, kwargs)
        self._reduce(step, cache_of(kwargs))
        if step.layout is not None:
            step.reduction.layouts[i] = step.layout
            kwargs = self._arguments(i, step, step.layout, kwargs)
        if i in self.watched:
            step.entered = {i: (hidden, kwargs)}
        return (hidden,), kwargs

    @staticmethod
    def _reduce(step: _Step, cache: Cache | None) -> None:
        """Tell the cache that a layer gets about the reduction."""
        if cache is None:
            return
        if step.cache is None:
            step.cache = cache
        if cache is not step.cache:
            raise changed("a decoder layer gets another KV cache than the decoder or the layer before it")
        if not isinstance(cache, ReducedCache) or cache.reduction is not step.reduction:
            reduce_cache(cache, step.reduction)

    def _decode(self, i: int, step: _Step, hidden: Tensor, kwargs: dict[str, Any]) -> Any:
        """Hide from a decode step what the layer does not hold; where no layer hides anything, leave it alone."""
        mask = kwargs[MASK]
        if i == self.first and self.uniform:
            if mask is None and step.reduction.plain:
                self.unhook_layers(but=i)  # until a step or a prefill needs them again
                return None
            self.hook_layers()
        layout = step.reduction.layouts[i]
        if layout is None:
            return None
        window = self._window(i)
        if mask is None and layout.plain and (window is None or step.total <= window):
            return None
        return (hidden,), self._arguments(i, step, layout, kwargs)

    def _ask(self, i: int, step: _Step, hidden: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """Drop the tokens that do not go on from here."""
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
        self, i: int, step: _Step, layout: Layout | None, hidden: Tensor, kwargs: Mapping[str, Any]
    ) -> tuple[Layout, Tensor, Tensor] | None:
        """Ask the method which tokens go on.

        Returns the layout after its choice, the chosen slots of the one before, and the hidden states to choose from;
        None if all go on.
        """
        prompt = step.reduction.prompt
        rows, length = prompt.valid.shape
        if layout is None:
            index = torch.arange(length, device=prompt.valid.device).expand(rows, -1)
            valid, vision = prompt.valid, prompt.vision
        else:
            index, valid = layout.index, layout.valid
            vision = prompt.vision.gather(1, index) & valid
        last = prompt.last() if layout is None else _last_slot(layout, prompt)

        def entering() -> tuple[Tensor, Mapping[str, Any]]:
            return hidden, kwargs if layout is None else self._arguments(i, step, layout, kwargs)

        def probe(at: int) -> Tensor:
            seen = entering() if at == i else step.entered[at]
            return last_query_attention(self.anatomy.layers[at], *seen, self.anatomy.text_config, last, valid)

        def keys() -> Tensor:
            return rotation_free_keys(self.anatomy.layers[i], *entering(), self.anatomy.text_config)

        size = torch.ones_like(index, dtype=torch.float32) if layout is None or layout.size is None else layout.size
        view = LayerView(i, self.anatomy.num_layers, hidden, valid, vision, index, prompt, last, size, probe, keys)
        answer = self.method.keep(view)
        merge = answer if isinstance(answer, Merge) else Merge(answer, hidden, None if layout is None else layout.size)
        check_answer(self.method, merge, hidden, i)
        answered = prompt.answer(index)
        keep = (merge.keep | answered) & valid
        if prompt.ends is not None and not bool((keep & ~answered).any(dim=1).all()):
            raise ValueError("a method left a row without any token of its prompt.")
        if torch.equal(keep, valid):
            return None
        new, chosen = advance(layout, keep)
        new = new if merge.size is None else replace(new, size=merge.size.gather(1, chosen))
        return new, chosen, merge.hidden

    def _arguments(self, i: int, step: _Step, layout: Layout, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments of a layer, cut to its layout."""
        sources = tuple(kwargs.get(name) for name in PER_LAYER)
        before = step.cut
        same = before is not None and before[0] is layout and all(map(operator.is_, before[1], sources))
        if not (same and self.uniform):
            held = layout.slots + step.total - step.queries - step.reduction.prompt.length if step.decoding else 0
            queries = step.queries if step.decoding else layout.slots
            keys = key_slots(cache_of(kwargs), i, held, queries, step.total)
            before = step.cut = (layout, sources, self._cut(step, layout, kwargs, keys, self._window(i)))
        assert before is not None
        new = {**kwargs, **before[2]}
        if step.decoding:
            return new
        rows, length = step.reduction.prompt.valid.shape
        for name, value in kwargs.items():  # whatever else the model passes per token
            if name not in PER_LAYER and isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] == length:
                if value.shape[0] not in (1, rows):
                    raise ValueError(f"layer {i} gets {name} of shape {tuple(value.shape)}: unknown how to cut it.")
                new[name] = step.once(layout, value, functools.partial(_pick_tokens, value, layout))
        return new

    def _cut(
        self, step: _Step, layout: Layout, kwargs: Mapping[str, Any], keys: int, window: int | None
    ) -> dict[str, Any]:
        """Return the mask and positions of a layer that gets ``keys`` keys."""
        new: dict[str, Any] = {}
        mask, embeddings, positions = (kwargs.get(name) for name in PER_LAYER)
        new[MASK] = step.once(layout, mask, lambda: self._mask(step, layout, mask, keys, window), keys, window)
        if embeddings is not None:
            new["position_embeddings"] = step.once(
                layout, embeddings, lambda: self._embeddings(step, layout, embeddings)
            )
        if positions is not None:
            if embeddings is not None and self.kind == "validity":
                new["position_ids"] = None  # FlashAttention takes gaps for the borders of packed sequences
            else:
                new["position_ids"] = step.once(layout, positions, lambda: self._positions(step, layout, positions))
        return new

    def _mask(self, step: _Step, layout: Layout, mask: Tensor | None, keys: int, window: int | None) -> Tensor | None:
        assert self.kind is not None, "a layout was chosen"
        check_mask(mask, self.kind, len(layout.index), step.queries)
        return reduced_mask(
            mask,
            layout,
            self.kind,
            length=step.reduction.prompt.length,
            queries=step.queries if step.decoding else layout.slots,
            total=step.total,
            keys=keys,
            window=window,
            dtype=step.dtype,
        )

    def _embeddings(self, step: _Step, layout: Layout, embeddings: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        check_embeddings(embeddings, len(layout.index), step.queries)
        if layout.shift is None and step.decoding:
            return embeddings
        if layout.shift is None:
            return tuple(pick(part, layout.index, -2) for part in embeddings)
        for call in step.rotary:
            if call.output is embeddings or call.output[0] is embeddings[0]:
                return call.again(self._positions(step, layout, call.positions))
        raise ValueError("position='rearrange' is not supported for this model: its position embeddings are unknown.")

    @staticmethod
    def _positions(step: _Step, layout: Layout, positions: Tensor) -> Tensor:
        if step.decoding:
            return positions if layout.shift is None else positions - layout.shift[..., None].to(positions.device)
        if layout.positions is not None:
            return layout.positions.to(positions.device)
        return pick(positions, layout.index, -1)

    def _window(self, i: int) -> int | None:
        """Sliding window of a layer whose mask does not carry it (FlashAttention), else None."""
        return self.anatomy.sliding_window(i) if self.kind == "validity" else None

    def _add_deepstack(self, i: int, step: _Step, hidden: Tensor) -> Tensor:
        """Add the vision features that belong after layer ``i - 1`` to the vision tokens that are left."""
        if step.deepstack is None or not self.first < i <= len(step.deepstack[1]):
            return hidden
        where, features = step.deepstack
        full = hidden.new_zeros(*where.shape, hidden.shape[-1])
        full[where.to(hidden.device)] = features[i - 1].to(hidden)
        return hidden + (full if step.layout is None else pick(full, step.layout.index, -2))


def _last_slot(layout: Layout, prompt: Prompt) -> Tensor:
    """Return the slot of each row's last token of the prompt that is left, long ``[rows]``."""
    if prompt.ends is None:
        return torch.full_like(layout.index[:, 0], layout.slots - 1)
    return last_valid(layout.valid & ~prompt.answer(layout.index))


def _for_rows(name: str, given: Tensor, rows: int, length: int) -> Tensor:
    """Repeat what a caller gave per prompt for beams or several answers per prompt; check its shape."""
    if rows != given.shape[0] and rows % given.shape[0] == 0:
        given = given.repeat_interleave(rows // given.shape[0], dim=0)
    if given.shape != (rows, length):
        raise ValueError(f"{name} has shape {tuple(given.shape)}, the prompt {(rows, length)}.")
    return given


def _pick_tokens(value: Tensor, layout: Layout) -> Tensor:
    """Cut ``[1 or rows, tokens, ...]`` to the slots of a layout."""
    return pick(value.movedim((0, 1), (-2, -1)), layout.index, -1).movedim((-2, -1), (0, 1))


def _spread_keys(attention: Tensor, layout: Layout, length: int, total: int) -> Tensor:
    """Bring attention weights ``[rows, heads, queries, keys]`` to ``total`` keys, zero where a key was not held."""
    held = layout.slots + total - length
    attention = nn.functional.pad(attention[..., :held], (max(held - attention.shape[-1], 0), 0))  # sliding window
    return spread(attention, layout, length, 3)


@contextmanager
def install(
    method: Reducer,
    model: nn.Module,
    *,
    vision_mask: Tensor | None = None,
    prompt_ids: Tensor | None = None,
    answer_mask: Tensor | None = None,
    allow_untested: bool = False,
) -> Iterator[Trace]:
    """Install a method on a model for the length of a ``with`` block.

    Parameters
    ----------
    method
        What to reduce.
    model
        A transformers vision-language model.
    vision_mask
        Boolean ``[rows, tokens]`` of the prompts' vision tokens, for prompts that reach the model as
        ``inputs_embeds``.
    prompt_ids
        Long ``[rows, tokens]``, the ids behind such prompts; random methods draw from them.
    answer_mask
        Boolean ``[rows, tokens]``: tokens at the end of each row that are an answer to be scored, not the prompt.
    allow_untested
        Go on with a model family that the test-suite does not cover.

    Yields
    ------
    Trace
        Filled by each prefill.

    Raises
    ------
    UnsupportedModelError
        If tokens cannot be removed from this model, or not known to be.
    ValueError
        If a hyper-parameter is impossible for this model.
    RuntimeError
        If another method is installed on it.
    """
    anatomy = find_anatomy(model)
    check_support(anatomy, allow_untested)
    check_bidirectional(anatomy)
    method = method.bind(anatomy)
    installed = (getattr(hook, "__self__", None) for hook in anatomy.decoder._forward_pre_hooks.values())
    if any(isinstance(owner, _Engine) for owner in installed):
        raise RuntimeError("a method is installed on this model already: leave its with block first.")
    engine = _Engine(method, anatomy, vision_mask, prompt_ids, answer_mask)
    with ExitStack() as stack:
        stack.callback(engine.unhook_layers)
        for handle in engine.register():
            stack.callback(handle.remove)
        stack.enter_context(replaced(anatomy.model, engine.functions()))
        stack.enter_context(uncompiled(anatomy.decoder, anatomy.layers))
        yield engine.trace
    if not engine.trace.prefills and compiled_inside(anatomy.decoder, anatomy.layers):
        # Only here nobody else would notice: with other models compiled code runs as it was written.
        raise RuntimeError("no prompt has run: a compiled function around the compiled layers has passed by the hooks.")
