"""Feature tests of what other packages do not promise, but this one relies on; milliseconds each, after the imports.

Each raises :class:`~vtw_eval.versions.UpstreamChangedError` if the installed release does something else.
:mod:`vtw_eval.verify.touch_points` lists what they are for.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from vtw_eval.versions import UpstreamChangedError


def _takes(function: Callable[..., Any], names: Iterable[str], package: str) -> None:
    """Check that a function has parameters of these names."""
    given = inspect.signature(function).parameters
    if missing := [name for name in names if name not in given]:
        name = f"{function.__module__}.{function.__qualname__}"
        raise UpstreamChangedError(f"{name} takes {', '.join(given)}, and not {', '.join(missing)}", package)


def _expect(right: bool, what: str, *packages: str) -> None:
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
    _expect(not is_compiled(nn.Identity()), "a module looks compiled that is not", "torch")
    compiled: list[Any] = [wrapped, in_place, forward]
    _expect(all(is_compiled(module) for module in compiled), "a compiled module does not look it", "torch")


def lists_hooks() -> None:
    """Check that a module's forward hooks can be looked at."""
    from torch import nn

    module = nn.Identity()
    hook = module.register_forward_pre_hook(lambda *_: None)
    _expect(len(module._forward_pre_hooks) == 1, "a hook is not among a module's _forward_pre_hooks", "torch")
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
    _expect(config._attn_implementation == "eager", "a config does not tell its attention", "transformers")
    config._attn_implementation_internal = "sdpa"
    changed = config._attn_implementation == "sdpa"
    _expect(changed, "a config's attention is not what _attn_implementation_internal says", "transformers")


def knows_masks() -> None:
    """Check that the registered mask functions are those whose masks the engine can cut."""
    from vtw_eval.engine.masks import mask_kind

    kinds = {name: mask_kind(name) for name in ("sdpa", "eager", "flash_attention_2")}
    expected = {"sdpa": "boolean", "eager": "additive", "flash_attention_2": "validity"}
    _expect(kinds == expected, f"masks are {kinds}, not {expected}", "transformers")


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
        _expect(bool(layer.is_initialized) and layer.keys.shape[1] == 1, "a cache's layer has no keys", "transformers")
        _takes(layer.get_mask_sizes, ["query_length"], "transformers")
        _takes(cache.get_mask_sizes, ["query_length", "layer_idx"], "transformers")
    _expect(dynamic.get_seq_length(0) == 3, "a cache does not tell its length", "transformers")
    fixed: Any = static.layers[0]
    _expect(fixed.max_cache_len == 5, "a static cache does not tell its length", "transformers")
    windowed = MistralConfig(**tiny, num_key_value_heads=1, sliding_window=2)
    sliding: Any = DynamicCache(config=windowed).layers[0]
    _expect(sliding.sliding_window == 2, "a sliding cache does not tell its window", "transformers")
    sliding.update(states, states)
    _expect(int(sliding.cumulative_length) == 3, "a sliding cache does not count what it has seen", "transformers")
    dynamic.__class__ = type("Reduced", (DynamicCache,), {})


def adds_deepstack() -> None:
    """Check that Qwen3-VL's decoder takes features for its first layers under the names that the engine looks for."""
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

    _takes(Qwen3VLTextModel.forward, ["deepstack_visual_embeds", "visual_pos_masks"], "transformers")


def names_placeholders() -> None:
    """Check that configs of tested families name the ids that stand for images and videos."""
    import transformers

    from vtw_eval.anatomy import _PLACEHOLDERS

    for name, expected in {"LlavaConfig": 1, "Qwen2VLConfig": 2, "VideoLlavaConfig": 2, "InternVLConfig": 1}.items():
        config = getattr(transformers, name)()
        found = [field for field in _PLACEHOLDERS if isinstance(getattr(config, field, None), int)]
        _expect(len(found) >= expected, f"{name} names {found or 'no'} placeholder ids", "transformers")


def makes_models_of_configs() -> None:
    """Check that a model can be made of a config without initial weights."""
    from transformers import LlavaForConditionalGeneration
    from transformers.initialization import no_init_weights

    _takes(LlavaForConditionalGeneration._from_config, ["config"], "transformers")
    with no_init_weights():
        pass


def names_checkpoints() -> None:
    """Check that a config keeps the name of its checkpoint, on which defaults of methods depend."""
    from transformers import LlamaConfig

    config = LlamaConfig.from_dict({"name_or_path": "a/b"})
    _expect(config._name_or_path == "a/b", "a config forgets its checkpoint", "transformers")


# --- harnesses


def lmms_patches() -> None:
    """Check that lmms-eval has the functions that are replaced, with their parameters."""
    from vtw_eval.model_adapters.patches import LMMS_EVAL

    for patch in LMMS_EVAL.values():
        patch.place()


def lmms_filelock() -> None:
    """Do what lmms-eval does to filelock before its first document; newer ones lack what it changes."""
    from lmms_eval import evaluator

    from vtw_eval.importing import importing

    with importing("lmms-eval"):
        getattr(evaluator, "_enable_reentrant_filelocks", lambda: None)()


def lmms_manifests() -> None:
    """Check that lmms-eval can be told our models."""
    from lmms_eval.models.registry_v2 import ModelManifest

    from vtw_eval.model_adapters.lmms.manifest import manifests

    _takes(ModelManifest, ["chat_class_path", "simple_class_path"], "lmms-eval")
    manifests()


def lmms_results() -> None:
    """Check that lmms-eval's evaluator and instances are what sweeps and the search of k read."""
    from lmms_eval import evaluator
    from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
    from lmms_eval.tasks import TaskManager, get_task_dict

    names = ("model", "tasks", "limit", "bootstrap_iters", "task_manager", "cli_args", "random_seed")
    _takes(evaluator.simple_evaluate, (*names, "numpy_random_seed", "torch_random_seed"), "lmms-eval")
    _takes(TaskManager.__init__, ["verbosity", "include_path", "include_defaults", "model_name"], "lmms-eval")
    _takes(get_task_dict, ["task_name_list", "task_manager", "task_type"], "lmms-eval")
    _takes(GenerationResult, ["text", "token_counts"], "lmms-eval")
    _takes(TokenCounts, ["input_tokens", "output_tokens"], "lmms-eval")
    _expect(hasattr(TokenCounts, "to_dict"), "TokenCounts has no to_dict: costs are not written", "lmms-eval")
    _expect("filtered_resps" in Instance.__annotations__, "instances have no filtered_resps", "lmms-eval")
    names = inspect.unwrap(TaskManager.__init__).__code__.co_names
    _expect("_task_index" in names, "a TaskManager has no _task_index", "lmms-eval")


def kit_patches() -> None:
    """Check that VLMEvalKit has the functions that are replaced, with their parameters."""
    from vtw_eval.model_adapters.patches import VLMEVALKIT

    for patch in VLMEVALKIT.values():
        patch.place()


def kit_pictures() -> None:
    """Check that VLMEvalKit hands the pictures of a table to a model through what is replaced."""
    from vlmeval.dataset.image_base import ImageBaseDataset
    from vlmeval.inference import infer_data

    missing = {"set_dump_image", "dump_image", "build_prompt"} - set(infer_data.__code__.co_names)
    _expect(not missing, f"vlmeval.inference.infer_data does not call {', '.join(sorted(missing))}", "ms-vlmeval")
    for name in ("dump_image", "build_prompt"):
        _expect(callable(getattr(ImageBaseDataset, name, None)), f"its datasets have no {name}", "ms-vlmeval")


def kit_reads_tables() -> None:
    """Check that VLMEvalKit reads tables with the functions that are replaced to compare them with their files."""
    from vlmeval.smp import load

    from vtw_eval.tasks.kit_tables import reading_tables

    seen: list[Path] = []

    def note(frame: Any, file: Path) -> Any:
        seen.append(file)
        return frame

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "table.tsv"
        file.write_text("index\tA\n0\tNone\n")
        with reading_tables(note):
            frame = load(str(file))
    _expect(seen == [file], "vlmeval.smp.load does not read tables with the module's own pandas", "ms-vlmeval")
    _expect(len(frame) == 1, "vlmeval.smp.load does not return the rows of a table", "ms-vlmeval")


def kit_guesses() -> None:
    """Check that VLMEvalKit draws the option of an answer that it cannot read from what is replaced."""
    from vtw_eval.model_adapters.vlmeval.scoring import GUESSING

    for name, (generator, function) in GUESSING.items():
        module = importlib.import_module(name)
        used = getattr(module, function).__code__.co_names
        _expect(generator in used, f"{name}.{function} does not draw from {generator}", "ms-vlmeval")


def kit_tables() -> None:
    """Check that VLMEvalKit looks models and datasets up in the tables that ours are put into."""
    import vlmeval.dataset as datasets
    from vlmeval import config, inference, inference_video, run
    from vlmeval.dataset.video_dataset_config import supported_video_datasets

    for module in (run, inference, inference_video):
        same = getattr(module, "supported_VLM", None) is config.supported_VLM
        _expect(same, f"{module.__name__} does not use vlmeval.config.supported_VLM", "ms-vlmeval")
    seen = inspect.unwrap(datasets.build_dataset).__globals__
    for name, table in (
        ("DATASET_CLASSES", datasets.DATASET_CLASSES),
        ("supported_video_datasets", supported_video_datasets),
    ):
        _expect(seen.get(name) is table, f"build_dataset of VLMEvalKit does not use {name}", "ms-vlmeval")
    _expect(isinstance(datasets.DATASET_CLASSES, list), "DATASET_CLASSES of VLMEvalKit is no list", "ms-vlmeval")


# --- others

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
        _expect(found == expected or name in os.environ, f"{name} is {found}, not {expected}", "qwen-vl-utils")
    frames = [qwen.smart_nframes({"fps": fps}, total_frames=100, video_fps=10.0) for fps in (0.1, 1.0, 2.5)]
    _expect(frames == [4, 10, 24], f"smart_nframes chooses {frames} frames, not [4, 10, 24]", "qwen-vl-utils")
    sides = qwen.smart_resize(100, 333, factor=28, min_pixels=28 * 28 * 4, max_pixels=28 * 28 * 16)
    _expect(sides == (56, 196), f"smart_resize gives {sides}, not (56, 196)", "qwen-vl-utils")


def datasets_features() -> None:
    """Check that columns of images are recognised, alone and in lists: their documents are resampled together."""
    import datasets

    from vtw_eval.model_adapters.lmms.samples import _holds_images

    features = (datasets.Image(), datasets.Sequence(datasets.Image()), datasets.List(datasets.Image()))
    _expect(all(map(_holds_images, features)), "lists of images are not recognised as such", "datasets")
    _expect(not _holds_images(datasets.Value("string")), "texts are taken for images", "datasets")
