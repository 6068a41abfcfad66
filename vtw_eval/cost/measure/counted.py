"""What formulas say of a prefill beside what two counters find in the model itself, on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from vtw_eval.cost.choice import choice_flops, read_flops, slots_per_layer
from vtw_eval.cost.dry_run import check_fixed
from vtw_eval.cost.eq1 import eq1_prefill_flops
from vtw_eval.cost.exact import exact_prefill_flops
from vtw_eval.cost.geometry import Geometry
from vtw_eval.cost.kv import kv_cache_bytes
from vtw_eval.cost.measure.flops import MeasuredFlops, cache_bytes, fvcore_flops, torch_flops
from vtw_eval.cost.measure.meta import meta_method, meta_model
from vtw_eval.cost.profiler import profiler_prefill_flops
from vtw_eval.engine.calls import cache_of_output
from vtw_eval.methods import Baseline, Method


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Why a convention differs from :attr:`CountedCosts.closed`: FLOPs that it takes otherwise, by what they are of."""

    matrices: float
    """Of q, k, v, o and FFN."""
    attention: float
    """Of the products of queries with keys and of weights with values."""
    head: float
    """Of the language-model head."""
    read: float
    """Of what the method reads."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.matrices + self.attention + self.head + self.read


@dataclass(frozen=True, kw_only=True)
class CountedCosts:
    """The prefill of one prompt under a method, in FLOPs unless said otherwise."""

    method: str
    """With all its parameters."""
    tokens_per_layer: tuple[int, ...]
    exact: float
    """Closed form: every matrix product of the decoder, the head on one token."""
    read: Mapping[str, int]
    """Closed form of what runs once more so that the method can read it, by kind."""
    own: Mapping[str, int]
    """Closed form of what the method computes from values, by kind. The meta device has none: nobody counts it."""
    fvcore: MeasuredFlops
    torch: MeasuredFlops
    eq1: float
    """Eq. 1 of the VTW paper."""
    profiler: float
    """The convention of the VTW paper's tables."""
    eq1_differs: Difference
    profiler_differs: Difference
    kv_bytes: int
    """Of the real cache after the prefill."""
    kv_closed: int
    """The same by closed form."""

    @property
    def closed(self) -> float:
        """What each counter must find: ``exact`` and ``read``."""
        return self.exact + sum(self.read.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the costs as JSON types."""
        return {
            "method": self.method,
            "tokens_per_layer": list(self.tokens_per_layer),
            "flops": {
                "exact": self.exact,
                "read": dict(self.read),
                "closed_form": self.closed,
                "fvcore": self.fvcore.total,
                "torch": self.torch.total,
                "eq1": self.eq1,
                "profiler": self.profiler,
            },
            "not_run": dict(self.own),
            "differences": {"eq1": asdict(self.eq1_differs), "profiler": asdict(self.profiler_differs)},
            "kv_bytes": self.kv_bytes,
            "unexplained": self.unexplained,
        }

    @property
    def unexplained(self) -> list[str]:
        """What differs and should not: counters to the FLOP, the cache to the byte, conventions by all their parts."""
        found = []
        for counted in (self.fvcore, self.torch):
            for what, count, closed in (
                ("decoder", counted.decoder, self.exact),
                ("what the method reads", counted.method, sum(self.read.values())),
                ("everything", counted.total, self.closed),
            ):
                if count != closed:
                    found.append(f"{what}: {counted.counter} {count:,} FLOPs, closed form {closed:,.0f}")
        for name, value, differs in (
            ("eq1", self.eq1, self.eq1_differs),
            ("profiler", self.profiler, self.profiler_differs),
        ):
            if abs(value - self.closed - differs.total) > 1e-9 * self.closed:
                found.append(f"{name}: {value - self.closed:,.0f} FLOPs, of which {differs.total:,.0f} are explained")
        if self.kv_bytes != self.kv_closed:
            found.append(f"KV cache: {self.kv_bytes:,} bytes, closed form {self.kv_closed:,}")
        return [f"{self.method}, {what}" for what in found]


def counted_costs(
    source: Geometry | PreTrainedConfig,
    methods: Sequence[Method],
    *,
    text: int,
    vision: int,
    dtype: torch.dtype = torch.bfloat16,
    advance: Callable[[], None] = lambda: None,
) -> list[CountedCosts]:
    """Count the prefill of the unchanged model and of each method with fvcore and with torch's own counter.

    The model is built on the meta device: of any size, without weights or memory. What a method keeps is found on a
    tiny model with as many layers (:func:`~vtw_eval.cost.measure.meta.meta_method`).

    Parameters
    ----------
    source
        A geometry, which becomes a LLaVA with a Llama decoder of these sizes, or the config of a vision-language
        model of transformers, which stays what it is.
    methods
        Methods; the baseline among them is not repeated. One that draws at random is counted as it draws once.
    text, vision
        Text and vision tokens of the prompt.
    dtype
        Of weights and cache.
    advance
        Called after each method, for a progress bar.

    Returns
    -------
    list of CountedCosts
        The baseline first; look at :attr:`CountedCosts.unexplained`.

    Raises
    ------
    ValueError
        For a model that cannot be built, has no closed form or looks at values (PaliGemma), a prompt that cannot be,
        and methods that decide by values (DyVTE, ``k=search``).
    UpstreamChangedError
        If a counter does not understand the installed torch or model.

    Examples
    --------
    >>> from vtw_eval.cost import PRESETS
    >>> from vtw_eval.methods import VTW
    >>> baseline, vtw = counted_costs(PRESETS["llava-0.5b"], [VTW(k=12)], text=66, vision=576)
    >>> vtw.fvcore.total == vtw.torch.total == vtw.closed
    True
    """
    for method in methods:
        check_fixed(method)
    if isinstance(source, Geometry):
        geometry = source
    elif type(source) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        geometry = Geometry.from_config(source)
    else:
        raise ValueError(f"{source.model_type} is no vision-language model of transformers: nothing to count.")
    model = meta_model(source, dtype=dtype)
    found = []
    for method in (Baseline(), *(method for method in methods if method != Baseline())):
        try:
            found.append(_counted(model, geometry, method, text, vision))
        except RuntimeError as error:
            if "meta tensor" not in str(error):
                raise
            raise ValueError(
                f"{model.config.model_type} looks at values while it runs, and the meta device has none ({error}): it "
                "cannot be counted without weights."
            ) from error
        advance()
    return found


@torch.no_grad()
def _counted(model: PreTrainedModel, geometry: Geometry, method: Method, text: int, vision: int) -> CountedCosts:
    with meta_method(method, model, text=text, vision=vision) as (trace, inputs):
        cache = cache_bytes(cache_of_output(model(**inputs)))
        tokens, updated, read = trace.tokens_per_layer, trace.updated_per_layer, read_flops(trace, geometry)
        computed = {kind: n - read.get(kind, 0) for kind, n in choice_flops(trace, geometry).items()}
        kv = kv_cache_bytes(slots_per_layer(trace), geometry, model.dtype.itemsize)
        name = str(trace.method)
        by_fvcore, by_torch = fvcore_flops(model, inputs), torch_flops(model, inputs)
    n, u = tokens[0].double(), updated[0].double()
    attention = 4 * float((u * n).sum())
    keys = geometry.key_macs
    extra = float(sum(read.values()))
    return CountedCosts(
        method=name,
        tokens_per_layer=tuple(tokens[0].tolist()),
        exact=float(exact_prefill_flops(tokens, geometry, updated=updated).sum()),
        read=read,
        own={kind: flops for kind, flops in computed.items() if flops},
        fvcore=by_fvcore,
        torch=by_torch,
        eq1=float(eq1_prefill_flops(tokens, geometry.hidden, updated).sum()),
        profiler=float(profiler_prefill_flops(tokens, geometry, updated=updated).sum()),
        eq1_differs=Difference(
            matrices=2 * float(u.sum()) * (12 * geometry.hidden**2 - geometry.layer_macs)
            + 2 * float((n - u).sum()) * (2 * geometry.hidden**2 - keys),
            attention=attention * (geometry.hidden - geometry.heads * geometry.head_dim),
            head=-2.0 * geometry.head_macs,
            read=-extra,
        ),
        profiler_differs=Difference(
            matrices=0.0,
            attention=-attention * geometry.heads * geometry.head_dim,
            head=2 * (float(n.mean()) - 1) * geometry.head_macs,
            read=-extra,
        ),
        kv_bytes=sum(cache),
        kv_closed=int(kv.sum()),
    )
