"""Everything that this project relies on in other packages without their promise, each with what checks it.

A release may change any of these without a word. What is here is found out before it can give a wrong number: by a
feature test (:mod:`vtw_eval.verify.touch_guards`), which :func:`check_touch_points` runs, or by a check where it is
used. Classes and functions that are merely imported are not listed: they fail by themselves when they are gone.
What is relied on in a harness is listed with its adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vtw_eval.importing import HarnessImportError
from vtw_eval.verify import touch_guards as guards
from vtw_eval.versions import UpstreamChangedError, installed

Guard = Callable[[], None] | str


@dataclass(frozen=True)
class TouchPoint:
    """One thing that another package does not promise."""

    package: str
    """Distribution."""
    what: str
    """What is relied on."""
    file: str
    """Where, from the root of the repository."""
    token: str
    """Text that stands in that file."""
    why: str
    """What would go wrong if it changed."""
    guard: Guard
    """A feature test, or the name of the function of ours that checks it where it is used."""


_PASS = "vtw_eval.engine.hooks.install"
_VERIFY = "vtw_eval.verify.verdict.verify"

TOUCH_POINTS: tuple[TouchPoint, ...] = (
    # --- torch
    TouchPoint(
        "torch",
        "the operators that its FLOP counter has formulas for",
        "vtw_eval/cost/measure/torch_counter.py",
        "_scaled_dot_product_flash_attention_for_cpu",
        "attention would count as 0",
        guards.counts_attention,
    ),
    TouchPoint(
        "torch",
        "names of fused attention on other devices",
        "vtw_eval/cost/measure/torch_counter.py",
        "_scaled_dot_product_attention_math_for_mps",
        "attention would count as 0",
        "vtw_eval.cost.measure.torch_counter.flop_counter",
    ),
    TouchPoint(
        "torch",
        "names of fused attention of other back ends",
        "vtw_eval/cost/measure/torch_counter.py",
        "_scaled_dot_product_fused_attention_overrideable",
        "attention would count as 0",
        "vtw_eval.cost.measure.torch_counter.flop_counter",
    ),
    TouchPoint(
        "torch",
        "TorchDispatchMode sees every operator",
        "vtw_eval/cost/measure/torch_counter.py",
        "_python_dispatch",
        "attention without a formula would not be noticed",
        guards.counts_attention,
    ),
    TouchPoint(
        "torch",
        "events of the profiler for allocations",
        "vtw_eval/cost/bench/memory.py",
        "kineto_results",
        "the peak of memory would be 0",
        "vtw_eval.cost.bench.memory.check_profiler",
    ),
    TouchPoint(
        "torch",
        "the hooks of a module",
        "vtw_eval/engine/hooks.py",
        "_forward_pre_hooks",
        "two methods could be installed on one model",
        guards.lists_hooks,
    ),
    TouchPoint(
        "torch",
        "the limit of recompilations",
        "vtw_eval/cost/bench/run.py",
        "_dynamo",
        "layers would run uncompiled",
        guards.limits_recompilation,
    ),
    TouchPoint(
        "torch",
        "the module inside torch.compile(module)",
        "vtw_eval/engine/wrappers.py",
        "_orig_mod",
        "compiled layers would run uncompiled",
        guards.tells_compiled_modules,
    ),
    TouchPoint(
        "torch",
        "what module.compile() leaves",
        "vtw_eval/engine/wrappers.py",
        "_compiled_call_impl",
        "compiled layers would run uncompiled",
        guards.tells_compiled_modules,
    ),
    TouchPoint(
        "torch",
        "what torch.compile(function) leaves",
        "vtw_eval/engine/wrappers.py",
        "_torchdynamo_orig_callable",
        "compiled layers would run uncompiled",
        guards.tells_compiled_modules,
    ),
    # --- fvcore, with torch
    TouchPoint(
        "fvcore",
        "handles of operators, and traces of torch.jit that it reads",
        "vtw_eval/cost/measure/fvcore_trace.py",
        "jit_handles",
        "FLOPs would be missing",
        guards.traces_for_fvcore,
    ),
    TouchPoint(
        "fvcore",
        "the state of a trace can be read",
        "vtw_eval/cost/measure/fvcore_trace.py",
        "_get_tracing_state",
        "masks would be traced, which fails, or parts would not be",
        guards.traces_for_fvcore,
    ),
    TouchPoint(
        "fvcore",
        "the state of a trace can be exchanged",
        "vtw_eval/cost/measure/fvcore_trace.py",
        "_set_tracing_state",
        "masks would be traced, which fails, or parts would not be",
        guards.traces_for_fvcore,
    ),
    # --- transformers
    TouchPoint(
        "transformers",
        "names of what stands between a vision tower and the decoder",
        "vtw_eval/engine/tower_packing.py",
        "merging_layer",
        "what a method reads of the tower would not come to the tokens of the prompt",
        "vtw_eval.engine.tower_places.scattered",
    ),
    TouchPoint(
        "transformers",
        "get_image_features and get_video_features run the tower, and give the features of the prompt in its order",
        "vtw_eval/engine/tower_pass.py",
        "get_video_features",
        "a method would read the tower at wrong tokens",
        "vtw_eval.engine.tower_places.scattered",
    ),
    TouchPoint(
        "transformers",
        "names of vision towers and projectors",
        "vtw_eval/cost/measure/flops.py",
        "_TOWERS",
        "their FLOPs would be missing, or count for no part",
        "vtw_eval.cost.measure.flops.torch_flops",
    ),
    TouchPoint(
        "transformers",
        "names of the KV cache and of what layers get",
        "vtw_eval/engine/calls.py",
        "CACHE_NAMES",
        "decode steps would be taken for prefills",
        _PASS,
    ),
    TouchPoint(
        "transformers",
        "names of the switch that activations are computed again",
        "vtw_eval/engine/calls.py",
        "is_gradient_checkpointing",
        "hooks would run twice",
        "vtw_eval.engine.calls.is_checkpointing",
    ),
    TouchPoint(
        "transformers",
        "classes of caches can be exchanged; what their layers hold",
        "vtw_eval/engine/cache.py",
        "cumulative_length",
        "masks and positions of decode steps would be those of all tokens",
        guards.reduces_caches,
    ),
    TouchPoint(
        "transformers",
        "a layer hands its keys and values to its KV cache, and attends to what that gives back",
        "vtw_eval/engine/frozen.py",
        "_Joining(Cache)",
        "text would not see vision tokens in layers that leave them as they are",
        "vtw_eval.engine.frozen.Freezer.run",
    ),
    TouchPoint(
        "transformers",
        "the attention that a config names",
        "vtw_eval/anatomy.py",
        "_attn_implementation",
        "masks would be cut as those of another attention, or questions packed where masks cannot tell them apart",
        guards.names_attention,
    ),
    TouchPoint(
        "transformers",
        "a 4-D mask reaches the layers as it is given",
        "vtw_eval/engine/packed.py",
        "MASK: mask",
        "questions packed into one row would see each other",
        guards.passes_masks_on,
    ),
    TouchPoint(
        "transformers",
        "where M-RoPE remembers the positions of its last prompt",
        "vtw_eval/engine/prefix.py",
        "rope_deltas",
        "questions would stand behind the image of another one",
        guards.remembers_positions,
    ),
    TouchPoint(
        "transformers",
        "the attention of a config can be exchanged for one pass",
        "vtw_eval/engine/probes.py",
        "_attn_implementation_internal",
        "queries and keys would not be seen",
        guards.names_attention,
    ),
    TouchPoint(
        "transformers",
        "options of the attention functions: scaling, softcap, sliding_window",
        "vtw_eval/engine/probes.py",
        "softcap",
        "methods that read attention would choose other tokens",
        _VERIFY,
    ),
    TouchPoint(
        "transformers",
        "the rotation of queries and keys reaches layers as cosines and sines",
        "vtw_eval/engine/probes.py",
        "position_embeddings",
        "attention without the rotary embedding would be rotated",
        "vtw_eval.engine.reads.check_readable",
    ),
    TouchPoint(
        "transformers",
        "the name of the norm behind the last layer",
        "vtw_eval/engine/reads.py",
        ".norm",
        "methods that compare states behind it could not run",
        "vtw_eval.engine.reads.check_readable",
    ),
    TouchPoint(
        "transformers",
        "which registered function makes which masks",
        "vtw_eval/engine/masks.py",
        "ALL_MASK_ATTENTION_FUNCTIONS",
        "masks would be cut as those of another attention",
        guards.knows_masks,
    ),
    TouchPoint(
        "transformers",
        "names of Qwen3-VL's features for its first layers",
        "vtw_eval/engine/deepstack.py",
        "deepstack_visual_embeds",
        "features would be added to other tokens",
        guards.adds_deepstack,
    ),
    TouchPoint(
        "transformers",
        "names of placeholder ids in configs",
        "vtw_eval/anatomy.py",
        "image_token_index",
        "vision tokens would be taken for text",
        guards.names_placeholders,
    ),
    TouchPoint(
        "transformers",
        "the name of a config's checkpoint",
        "vtw_eval/anatomy.py",
        "_name_or_path",
        "defaults of another checkpoint would be taken",
        guards.names_checkpoints,
    ),
    TouchPoint(
        "transformers",
        "the name of a config's checkpoint",
        "vtw_eval/cost/geometry.py",
        "_name_or_path",
        "tables would not name the model",
        guards.names_checkpoints,
    ),
    TouchPoint(
        "transformers",
        "the name of a config's checkpoint",
        "vtw_eval/cost/measure/meta.py",
        "_name_or_path",
        "defaults of another checkpoint would be taken",
        guards.names_checkpoints,
    ),
    TouchPoint(
        "transformers",
        "the name of a config's checkpoint",
        "vtw_eval/cost/dry_run.py",
        "_name_or_path",
        "defaults of another checkpoint would be taken",
        guards.names_checkpoints,
    ),
    TouchPoint(
        "transformers",
        "fields of configs: experts, FFN, heads",
        "vtw_eval/cost/geometry.py",
        "_EXPERTS",
        "closed forms would be those of another model",
        "vtw_eval.cost.geometry.Geometry.from_config",
    ),
    TouchPoint(
        "transformers",
        "models without initial weights",
        "vtw_eval/cost/bench/subject.py",
        "_from_config",
        "a model of 7B would take minutes to make",
        guards.makes_models_of_configs,
    ),
    # --- qwen-vl-utils
    TouchPoint(
        "qwen-vl-utils",
        "constants of frames and sizes",
        "vtw_eval/models/qwen2_vl.py",
        "VIDEO_MAX_TOKEN_NUM",
        "videos would be shown in other frames of other sizes",
        guards.qwen_frames,
    ),
)


def check_touch_points(points: Iterable[TouchPoint]) -> list[str]:
    """Run the feature tests of touch points.

    Parameters
    ----------
    points
        The touch points, such as :data:`TOUCH_POINTS` or those of a harness.

    Returns
    -------
    list of str
        A line for each: what was found out, or where it is checked.

    Raises
    ------
    UpstreamChangedError
        If a feature test fails, or cannot be made because what it looks at is gone.
    vtw_eval.importing.HarnessImportError
        If a harness cannot be imported because of a package that it needs.
    """
    return [_line(point, check(point)) for point in points]


def check(point: TouchPoint) -> str:
    """Check one touch point and return how; see :func:`check_touch_points`."""
    if isinstance(point.guard, str):
        return f"checked where it is used, by {point.guard.rsplit('.', 1)[-1]}"
    try:
        point.guard()
    except (HarnessImportError, UpstreamChangedError):
        raise
    except Exception as error:  # whatever comes of a thing that is gone
        what = f"{point.what} ({point.file}): {type(error).__name__}: {error}"
        raise UpstreamChangedError(what, point.package) from error
    return "as expected"


def _line(point: TouchPoint, outcome: str) -> str:
    return f"{point.package} {installed(point.package)}: {point.what} ({point.file}): {outcome}"
