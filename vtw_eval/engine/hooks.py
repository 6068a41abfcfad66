"""Installing a method on a model: the hooks, and what runs when.

The hooks register and dispatch; their work is done by :mod:`~vtw_eval.engine.prompts` (what a pass is about),
:mod:`~vtw_eval.engine.choose` (which tokens go on), :mod:`~vtw_eval.engine.arguments` (what a layer gets) and
:mod:`~vtw_eval.engine.outputs` (what the caller gets back).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from vtw_eval.anatomy import Anatomy, check_support, find_anatomy, find_tower
from vtw_eval.engine.arguments import Arguments
from vtw_eval.engine.cache import ReducedCache, check_cache, reduce_cache
from vtw_eval.engine.calls import (
    MASK,
    by_name,
    cache_of,
    cache_of_output,
    changed,
    check_layer_call,
    is_checkpointing,
)
from vtw_eval.engine.choose import Chooser
from vtw_eval.engine.deepstack import add_deepstack, take_deepstack
from vtw_eval.engine.entry import Entry, looked_layers
from vtw_eval.engine.frozen import Freezer
from vtw_eval.engine.layout import Reduction
from vtw_eval.engine.masks import check_bidirectional, check_width, mask_kind
from vtw_eval.engine.observe import Observer, entering
from vtw_eval.engine.outputs import blank_labels, restore_last, restore_recorded
from vtw_eval.engine.prompts import PromptReader
from vtw_eval.engine.reads import Reads, check_readable
from vtw_eval.engine.step import RotaryCall, Step
from vtw_eval.engine.tower import TokenIds, TowerView
from vtw_eval.engine.tower_pass import TowerRecorder
from vtw_eval.engine.trace import Trace
from vtw_eval.engine.view import Reducer, asked_layers, frozen_layers
from vtw_eval.engine.wrappers import compiled_inside, replaced, uncompiled

_PROMPTS = ("inputs_embeds", "input_ids", "inputs")
"""Under which names ``generate`` takes a prompt, the one that it runs first."""


class _Engine:
    """The hooks of one installed method."""

    def __init__(
        self,
        method: Reducer,
        anatomy: Anatomy,
        prompts: PromptReader,
        observer: Observer | None = None,
        entry: Entry | None = None,
    ) -> None:
        self.method = method
        self.anatomy = anatomy
        self.prompts = prompts
        self.observer = observer
        self.entry = entry
        self.asked = asked_layers(method, anatomy.num_layers)
        self.frozen = frozen_layers(method, anatomy.num_layers)
        self.acts = bool(self.asked or self.frozen)
        if entry is not None and self.frozen:
            raise ValueError(f"{method}: prompts that share a beginning need it by the unchanged model in all layers.")
        self.first = min(self.asked | self.frozen, default=anatomy.num_layers)
        self.watched = frozenset(i - 1 for i in self.asked if i and method.reads.layer_before)
        self.embeds = bool(self.asked) and Reads.EMBEDDINGS in method.reads
        self.looked = looked_layers(method, anatomy.num_layers)
        self.trace = Trace(method, frozen=self.frozen)
        kind = mask_kind(anatomy.attention) if self.acts else None
        self.arguments = Arguments(anatomy, kind)
        self.freezer = Freezer(anatomy, kind) if self.frozen and kind is not None else None
        self.chooser = Chooser(method, anatomy, self.arguments)
        self.shares_keys = anatomy.shares_keys
        self.tower: TowerRecorder | None = None
        if self.asked and Reads.TOWER in method.reads:
            tower = find_tower(anatomy)
            self.tower = TowerRecorder(tower, method.tower_layers(tower.num_layers))
        self.step: Step | None = None
        self.seen: Mapping[str, Any] = {}
        self.labels: Tensor | None = None
        self.entered = False
        """Whether the decoder's hook has run in the model's pass under way."""
        self.layer_hooks: dict[int, Any] = {}

    def register(self) -> Iterator[Any]:
        """Register all hooks, yielding their handles."""
        decoder = self.anatomy.decoder
        yield decoder.register_forward_pre_hook(self.before_decoder, with_kwargs=True)
        if self.asked and self.method.positions == "rearrange" and self.anatomy.rotary is not None:
            yield self.anatomy.rotary.register_forward_hook(self.after_rotary, with_kwargs=True)
        yield decoder.register_forward_hook(self.after_decoder)
        if self.tower is not None:
            yield from self.tower.register()

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
                    restore_recorded(output, self.step)
                return output
            finally:
                self.step, self.labels, self.seen = None, None, {}
                # generate() runs the tower once, also for all the passes that it makes without a cache.
                if self.tower is not None and self.prompts.generating is None:
                    self.tower.forget()

        return watched

    def _watched_generate(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        first = next(iter(inspect.signature(generate).parameters), None)

        @functools.wraps(generate)
        def watched(*args: Any, **kwargs: Any) -> Any:
            named = {str(first): args[0], **kwargs} if args else kwargs
            prompt = next((named[n] for n in _PROMPTS if isinstance(named.get(n), Tensor)), None)
            self.prompts.generating = prompt.shape[1] if prompt is not None and prompt.ndim > 1 else None
            self.prompts.uncached = None
            try:
                return generate(*args, **kwargs)
            finally:
                self.prompts.generating = None
                if self.tower is not None:
                    self.tower.forget()

        return watched

    def hook_layers(self) -> None:
        """Put a hook on each layer from the first choice on; the layers below see everything: no hook, no cost."""
        last = self.anatomy.num_layers
        everywhere = self.embeds or self.observer is not None or self.entry is not None
        for i in range(0 if everywhere else min(self.first, *self.watched, last), last):
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
        if not self.acts:
            return kwargs
        if self.frozen and seen.get("output_attentions"):
            raise ValueError(f"{self.method}: layers that leave vision tokens as they are give no output_attentions.")
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
        if self.acts and module.training and is_checkpointing(self.anatomy.model, module):
            raise ValueError("methods do not work under gradient checkpointing: switch it off on the model.")
        cache = cache_of(kwargs)
        source = kwargs["input_ids"] if kwargs.get("inputs_embeds") is None else kwargs["inputs_embeds"]
        queries = source.shape[1]
        if self.acts and self.shares_keys:
            # As a number it would leave layers that share keys the last tokens only.
            kwargs["logits_to_keep"] = torch.arange(queries)
        past = int(cache.get_seq_length()) if cache is not None else 0
        for mask in (self.seen.get(MASK), kwargs.get(MASK)):
            check_width(mask, past, queries)
        if not past:
            self.hook_layers()
            self.step = self._prefill(source, kwargs, cache)
        elif isinstance(cache, ReducedCache):
            self._go_on(cache.reduction)
            self.step = Step(cache.reduction, decoding=True, queries=queries, total=past + queries, cache=cache)
            self.prompts.refuse_late_vision(self.seen.get("input_ids"), past, queries)
        elif self.acts:
            raise ValueError(
                "the KV cache was filled without this method, so it holds tokens that should be gone: "
                "start from an empty cache."
            )
        return (), kwargs

    def _go_on(self, reduction: Reduction) -> None:
        """Put hooks on the layers for a cache that an earlier ``with`` block has filled; a prefill puts them itself.

        Raises
        ------
        ValueError
            If another method has filled it, which removes tokens from layers that this one leaves alone.
        """
        if self.layer_hooks:
            return
        cut = next((i for i, layout in enumerate(reduction.layouts) if layout is not None), self.anatomy.num_layers)
        if cut < self.first:
            raise ValueError(
                f"the KV cache was filled under another method than {self.method}: its tokens are gone from layer "
                f"{cut} on. Go on under the method that has filled it, or start from an empty cache."
            )
        self.hook_layers()

    def after_decoder(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Put the output back to the prompt's length, and blank labels that no token predicts any more."""
        step = self.step
        if step is None:
            return None
        self._check_pass(step, output)
        if not step.decoding:
            self._record(step)
        if step.layout is not None:
            output = restore_last(output, step, step.layout)
            if self.labels is not None:
                blank_labels(self.labels, step)
        restore_recorded(output, step)
        return output

    def _record(self, step: Step) -> None:
        """Note what a prefill did to its prompt; tokens that ``generate`` had appended are none of the prompt's."""
        reduction = step.reduction
        if self.prompts.generating is not None and self.prompts.generating < step.total:
            reduction = reduction.begin(self.prompts.generating)
            if isinstance(step.cache, ReducedCache):  # it may be told to forget them
                step.cache.reduction = reduction
        if not step.continued:
            self.trace.reduction, self.trace.looks = reduction, step.looks
            self.trace.prefills += 1

    def _check_pass(self, step: Step, output: Any) -> None:
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
        if self.acts and not (isinstance(step.cache, ReducedCache) and step.cache.reduction is step.reduction):
            raise changed("the KV cache was not told which tokens are gone")
        check_cache(step.cache, step.reduction, step.total)

    def _prefill(self, source: Tensor, kwargs: dict[str, Any], cache: Cache | None) -> Step:
        """Begin a prefill; ``kwargs``, the decoder's arguments, may be changed."""
        cached = cache is not None or bool(kwargs.get("use_cache"))
        prompt, continued = self.prompts.read(source, kwargs, self.seen, cached=cached)
        if self.acts and bool(prompt.vision.gather(1, prompt.last()[:, None]).any()):
            raise ValueError("the prompt ends in a vision token: there is no text token to answer from.")
        reduction = Reduction(prompt, [None] * self.anatomy.num_layers)
        length = source.shape[1]
        step = Step(reduction, decoding=False, queries=length, total=length, continued=continued, cache=cache)
        if self.acts:
            take_deepstack(step, kwargs, self.first, self.anatomy.num_layers)
        if self.entry is not None:
            self.entry.begin(len(source), length, self.looked)
            step.deepstack = self.entry.deepstack()
            if self.tower is not None:
                self.tower.calls = self.entry.tower()
        if self.tower is not None:
            ids = TokenIds.of(self.anatomy.model.config)
            width = self.anatomy.hidden_size
            step.tower = TowerView(self.tower, prompt, width, ids, step.looks, str(self.method))
        if self.method.reads.before_layers:
            self.chooser.plan(step, source, self.asked)
        return step

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

        self.step.rotary.append(RotaryCall(output, bound.arguments["position_ids"], again))

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
        first: float = self.first
        if self.entry is not None:
            hidden, first = self.entry.whole(i, hidden)
        hidden = add_deepstack(i, step, hidden, first)
        if self.embeds and not i:
            step.embeddings = hidden
        if i in self.asked:
            hidden = self.chooser.ask(i, step, hidden, kwargs)
        self._reduce(step, cache_of(kwargs))
        if step.layout is not None:
            step.reduction.layouts[i] = step.layout
            kwargs = self.arguments.cut(i, step, step.layout, kwargs)
        if i in self.watched:
            step.entered = {i: (hidden, kwargs)}
        if self.observer is not None:
            self.observer(entering(i, step.reduction.prompt, step.layout, hidden, kwargs, self.anatomy))
        if self.entry is not None and self.arguments.kind is not None:
            removed, kind = step.layout is not None, self.arguments.kind
            hidden, kwargs = self.entry.own(i, removed, self.looked, hidden, kwargs, kind)
        step.due = i
        return (hidden,), kwargs

    def layer_forward(self, i: int) -> Callable[..., Any]:
        """Return what takes the place of the forward of a layer that leaves vision tokens as they are."""
        forward: Callable[..., Any] = self.anatomy.layers[i].forward
        freezer = self.freezer
        assert freezer is not None, "the layer is one of those"

        @functools.wraps(forward)
        def frozen(*args: Any, **kwargs: Any) -> Any:
            step = self.step
            if step is None or step.due != i:
                return forward(*args, **kwargs)
            step.due = None
            return freezer.run(i, forward, step, args, kwargs)

        return frozen

    @staticmethod
    def _reduce(step: Step, cache: Cache | None) -> None:
        """Tell the cache that a layer gets about the reduction."""
        if cache is None:
            return
        if step.cache is None:
            step.cache = cache
        if cache is not step.cache:
            raise changed("a decoder layer gets another KV cache than the decoder or the layer before it")
        if not isinstance(cache, ReducedCache) or cache.reduction is not step.reduction:
            reduce_cache(cache, step.reduction)

    def _decode(self, i: int, step: Step, hidden: Tensor, kwargs: dict[str, Any]) -> Any:
        """Hide from a decode step what the layer does not hold; where no layer hides anything, leave it alone."""
        mask = kwargs[MASK]
        if i == self.first and self.arguments.uniform:
            if mask is None and step.reduction.plain:
                self.unhook_layers(but=i)  # until a step or a prefill needs them again
                return None
            self.hook_layers()
        layout = step.reduction.layouts[i]
        if layout is None or self.anatomy.is_recurrent(i):
            return None
        window = self.arguments.window(i)
        held = step.reduction.layouts[self.anatomy.keys_of(i)]
        if mask is None and layout.plain and layout is held and (window is None or step.total <= window):
            return None
        return (hidden,), self.arguments.cut(i, step, layout, kwargs)


@contextmanager
def install(
    method: Reducer,
    model: nn.Module,
    *,
    vision_mask: Tensor | None = None,
    prompt_ids: Tensor | None = None,
    answer_mask: Tensor | None = None,
    allow_untested: bool = False,
    observer: Observer | None = None,
    entry: Entry | None = None,
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
    observer
        Shown what enters each layer of a prefill; it changes nothing. Not for methods that freeze layers.
    entry
        What the prompts of the pass begin with, if that has run before; ``entry.inputs`` are what to generate from.

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
    check_readable(method.reads, anatomy, str(method))
    installed = (getattr(hook, "__self__", None) for hook in anatomy.decoder._forward_pre_hooks.values())
    if any(isinstance(owner, _Engine) for owner in installed):
        raise RuntimeError("a method is installed on this model already: leave its with block first.")
    engine = _Engine(method, anatomy, PromptReader(anatomy, vision_mask, prompt_ids, answer_mask), observer, entry)
    if observer is not None and engine.freezer is not None:
        raise ValueError(
            f"{method} leaves vision tokens as they are in some layers, where they attend to nothing: attention cannot "
            "be read under it."
        )
    with ExitStack() as stack:
        stack.callback(engine.unhook_layers)
        for handle in engine.register():
            stack.callback(handle.remove)
        stack.enter_context(replaced(anatomy.model, engine.functions()))
        for i in engine.frozen:
            stack.enter_context(replaced(anatomy.layers[i], {"forward": engine.layer_forward(i)}))
        if engine.tower is not None:
            stack.enter_context(replaced(engine.tower.tower.owner, engine.tower.functions()))
        stack.enter_context(uncompiled(anatomy.decoder, anatomy.layers))
        yield engine.trace
    if not engine.trace.prefills and compiled_inside(anatomy.decoder, anatomy.layers):
        # Only here nobody else would notice: with other models compiled code runs as it was written.
        raise RuntimeError("no prompt has run: a compiled function around the compiled layers has passed by the hooks.")
