"""Feature tests of what other packages do not promise, but this one relies on; milliseconds each, after the imports.

Each raises :class:`~vtw_eval.versions.UpstreamChangedError` if the installed release does something else.
:mod:`vtw_eval.verify.touch_points` lists what they are for. Those of a harness stand with its adapters.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable
from typing import Any

from vtw_eval.versions import UpstreamChangedError


def takes(function: Callable[..., Any], names: Iterable[str], package: str) -> None:
    """Raise :class:`UpstreamChangedError` unless a package's function has parameters of these names."""
    given = inspect.signature(function).parameters
    if missing := [name for name in names if name not in given]:
        name = f"{function.__module__}.{function.__qualname__}"
        raise UpstreamChangedError(f"{name} takes {', '.join(given)}, and not {', '.join(missing)}", package)


def expect(right: bool, what: str, *packages: str) -> None:
    """Raise :class:`UpstreamChangedError` with ``what`` was found, and packages to blame, unless it is right."""
    if not right:
        raise UpstreamChangedError(what, *packages)


# --- torch and fvcore


def counts_attention() -> None:
    """Check that torch's counter of FLOPs counts a CPU's attention."""
    import torch

    from vtw_eval.cost.measure.torch_counter import check_counter

    check_counter("cpu", torch.float32)


def traces_for_fvcore() -> None:
    """Check that fvcore reads the traces of this torch."""
    from vtw_eval.cost.measure.fvcore_trace import check_fvcore

    check_fvcore()


def tells_compiled_modules() -> None:
    """Check that a compiled module can be told from another, in each of the three ways to compile one."""
    import torch
    from torch import nn

    from vtw_eval.engine.wrappers import is_compiled

    wrapped = torch.compile(nn.Identity(), backend="eager")
    in_place, forward = nn.Identity(), nn.Identity()
    in_place.compile(backend="eager")
    forward.forward = torch.compile(forward.forward, backend="eager")  # type: ignore[method-assign]
    expect(not is_compiled(nn.Identity()), "a module looks compiled that is not", "torch")
    compiled: list[Any] = [wrapped, in_place, forward]
    expect(all(is_compiled(module) for module in compiled), "a compiled module does not look it", "torch")


def lists_hooks() -> None:
    """Check that a module's forward hooks can be looked at."""
    from torch import nn

    module = nn.Identity()
    hook = module.register_forward_pre_hook(lambda *_: None)
    expect(len(module._forward_pre_hooks) == 1, "a hook is not among a module's _forward_pre_hooks", "torch")
    hook.remove()


def limits_recompilation() -> None:
    """Check that torch.compile has a limit that can be raised."""
    from vtw_eval.cost.bench.run import recompile_limit

    recompile_limit()


# --- transformers


def names_attention() -> None:
    """Check that a config tells its attention implementation, and lets it be exchanged for one pass."""
    from transformers import LlamaConfig

    make: Any = LlamaConfig
    config = make(attn_implementation="eager")
    expect(config._attn_implementation == "eager", "a config does not tell its attention", "transformers")
    config._attn_implementation_internal = "sdpa"
    changed = config._attn_implementation == "sdpa"
    expect(changed, "a config's attention is not what _attn_implementation_internal says", "transformers")


def knows_masks() -> None:
    """Check that the registered mask functions are those whose masks the engine can cut."""
    from vtw_eval.engine.masks import mask_kind

    kinds = {name: mask_kind(name) for name in ("sdpa", "eager", "flash_attention_2")}
    expected = {"sdpa": "boolean", "eager": "additive", "flash_attention_2": "validity"}
    expect(kinds == expected, f"masks are {kinds}, not {expected}", "transformers")


def reduces_caches() -> None:
    """Check that a cache's class can be exchanged, and that its layers tell what they hold."""
    import torch
    from transformers import DynamicCache, LlamaConfig, MistralConfig, StaticCache

    tiny: Any = {"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1}
    states = torch.zeros(1, 1, 3, 8)
    dynamic, static = DynamicCache(), StaticCache(config=LlamaConfig(**tiny), max_cache_len=5)
    for cache in (dynamic, static):
        cache.update(states, states, 0)
        layer: Any = cache.layers[0]
        expect(bool(layer.is_initialized) and layer.keys.shape[1] == 1, "a cache's layer has no keys", "transformers")
        takes(layer.get_mask_sizes, ["query_length"], "transformers")
        takes(cache.get_mask_sizes, ["query_length", "layer_idx"], "transformers")
    expect(dynamic.get_seq_length(0) == 3, "a cache does not tell its length", "transformers")
    fixed: Any = static.layers[0]
    expect(fixed.max_cache_len == 5, "a static cache does not tell its length", "transformers")
    windowed = MistralConfig(**tiny, num_key_value_heads=1, sliding_window=2)
    sliding: Any = DynamicCache(config=windowed).layers[0]
    expect(sliding.sliding_window == 2, "a sliding cache does not tell its window", "transformers")
    sliding.update(states, states)
    expect(int(sliding.cumulative_length) == 3, "a sliding cache does not count what it has seen", "transformers")
    dynamic.__class__ = type("Reduced", (DynamicCache,), {})


def adds_deepstack() -> None:
    """Check that Qwen3-VL's decoder takes features for its first layers under the names that the engine looks for."""
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

    takes(Qwen3VLTextModel.forward, ["deepstack_visual_embeds", "visual_pos_masks"], "transformers")


def names_placeholders() -> None:
    """Check that configs of tested families name the ids that stand for images and videos."""
    import transformers

    from vtw_eval.anatomy import _PLACEHOLDERS

    for name, expected in {"LlavaConfig": 1, "Qwen2VLConfig": 2, "VideoLlavaConfig": 2, "InternVLConfig": 1}.items():
        config = getattr(transformers, name)()
        found = [field for field in _PLACEHOLDERS if isinstance(getattr(config, field, None), int)]
        expect(len(found) >= expected, f"{name} names {found or 'no'} placeholder ids", "transformers")


def makes_models_of_configs() -> None:
    """Check that a model can be made of a config without initial weights."""
    from transformers import LlavaForConditionalGeneration
    from transformers.initialization import no_init_weights

    takes(LlavaForConditionalGeneration._from_config, ["config"], "transformers")
    with no_init_weights():
        pass


def names_checkpoints() -> None:
    """Check that a config keeps the name of its checkpoint, on which defaults of methods depend."""
    from transformers import LlamaConfig

    config = LlamaConfig.from_dict({"name_or_path": "a/b"})
    expect(config._name_or_path == "a/b", "a config forgets its checkpoint", "transformers")


def passes_masks_on() -> None:
    """Check that layers get a 4-D mask as the caller gave it: a token that it hides changes nothing."""
    import torch
    from transformers import LlamaConfig, LlamaModel

    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=9, num_hidden_layers=1, **sizes)
    model = LlamaModel._from_config(config, attn_implementation="sdpa").eval()
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
    mask[..., 2, 0] = False
    positions = torch.arange(3)[None]
    with torch.no_grad():
        last = [
            model(torch.tensor([[first, 2, 3]]), attention_mask=mask, position_ids=positions).last_hidden_state[0, 2]
            for first in (1, 5)
        ]
    expect(torch.equal(*last), "a token that a 4-D mask hides is seen", "transformers", "torch")


def remembers_positions() -> None:
    """Check that a model with M-RoPE reads where it goes on from an attribute of this name."""
    from transformers import Qwen2VLModel

    expect(
        "self.rope_deltas" in inspect.getsource(Qwen2VLModel),
        "Qwen2-VL does not remember its positions as rope_deltas",
        "transformers",
    )


# --- qwen-vl-utils

_QWEN = {"SPATIAL_MERGE_SIZE": 2, "VIDEO_MAX_TOKEN_NUM": 768, "FRAME_FACTOR": 2, "FPS_MIN_FRAMES": 4}
_QWEN |= {"FPS_MAX_FRAMES": 768, "MODEL_SEQ_LEN": 128000, "MAX_RATIO": 200, "IMAGE_MIN_TOKEN_NUM": 4}
_QWEN |= {"IMAGE_MAX_TOKEN_NUM": 16384}


@functools.cache
def qwen_frames() -> None:
    """Check that qwen-vl-utils chooses the frames and sizes of its tested release; others would be other prompts.

    Constants that the environment sets, as the package allows, are the user's own choice.
    """
    from qwen_vl_utils import vision_process as qwen

    for name, expected in _QWEN.items():
        found = getattr(qwen, name, None)
        expect(found == expected or name in os.environ, f"{name} is {found}, not {expected}", "qwen-vl-utils")
    frames = [qwen.smart_nframes({"fps": fps}, total_frames=100, video_fps=10.0) for fps in (0.1, 1.0, 2.5)]
    expect(frames == [4, 10, 24], f"smart_nframes chooses {frames} frames, not [4, 10, 24]", "qwen-vl-utils")
    sides = qwen.smart_resize(100, 333, factor=28, min_pixels=28 * 28 * 4, max_pixels=28 * 28 * 16)
    expect(sides == (56, 196), f"smart_resize gives {sides}, not (56, 196)", "qwen-vl-utils")
