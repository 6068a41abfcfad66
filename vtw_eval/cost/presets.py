"""Geometries of known models: numbers only, no download."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from vtw_eval.checkpoints import EMBEDDED, checkpoint
from vtw_eval.cost.geometry import Geometry, VisionGeometry
from vtw_eval.errors import suggest

# CLIP ViT-L/14 (https://huggingface.co/openai/clip-vit-large-patch14-336) at 336 and at 224 pixels. LLaVA takes the
# features of the last layer but one and drops CLS; the last layer runs all the same.
_CLIP_336 = VisionGeometry(
    layers=24, hidden=1024, ffn=4096, heads=16, tokens=577, patches=576, patch_dim=588, features=576
)
_CLIP_224 = replace(_CLIP_336, tokens=257, patches=256, features=256)

# LLaMA-2 / Vicuna v1.5, without the rows by which some ports pad the head (llava-hf has 32064).
_LLAVA_7B = Geometry(
    name="llava-1.5-7b",
    layers=32,
    hidden=4096,
    heads=32,
    kv_heads=32,
    head_dim=128,
    ffn=11008,
    gated=True,
    vocab=32000,
    vision=_CLIP_336,
    projector=((1024, 4096), (4096, 4096)),
    vision_tokens=576,
)
_LLAVA_13B = replace(
    _LLAVA_7B,
    name="llava-1.5-13b",
    layers=40,
    hidden=5120,
    heads=40,
    kv_heads=40,
    ffn=13824,
    projector=((1024, 5120), (5120, 5120)),
)
_QWEN2_VL_2B = Geometry(
    # https://huggingface.co/Qwen/Qwen2-VL-2B-Instruct
    name="qwen2-vl-2b",
    layers=28,
    hidden=1536,
    heads=12,
    kv_heads=2,
    head_dim=128,
    ffn=8960,
    gated=True,
    vocab=151936,
    no_vision="its tower sees images at native resolution",
)

_ALL = (
    _LLAVA_7B,
    _LLAVA_13B,
    # Vicuna-7B. 2108 vision tokens is the mean over MME (VTW's Table 2; also in DivPrune's cost script); most of its
    # images are seen as 2 x 2 tiles and whole.
    replace(_LLAVA_7B, name="llava-next-7b", vision=replace(_CLIP_336, images=5), vision_tokens=2108),
    # Eight frames of 257 tokens, CLS kept (https://arxiv.org/abs/2311.10122). LanguageBind's temporal attention, which
    # the transformers port does not have either, is left out.
    replace(_LLAVA_7B, name="video-llava-7b", vision=replace(_CLIP_224, images=8, features=257), vision_tokens=8 * 257),
    _QWEN2_VL_2B,
    # https://huggingface.co/Qwen/Qwen2-VL-7B-Instruct
    replace(_QWEN2_VL_2B, name="qwen2-vl-7b", hidden=3584, heads=28, kv_heads=4, ffn=18944, vocab=152064),
    # Phi-3-mini (its own head of 32064 rows) and InternViT-300M-448px, one tile of 256 tokens after pixel shuffling
    # (https://huggingface.co/OpenGVLab/InternVL2-4B); more tiles with --vision and --images.
    Geometry(
        name="internvl2-4b",
        layers=32,
        hidden=3072,
        heads=32,
        kv_heads=32,
        head_dim=96,
        ffn=8192,
        gated=True,
        vocab=32064,
        vision=VisionGeometry(
            layers=24, hidden=1024, ffn=4096, heads=16, tokens=1025, patches=1024, patch_dim=588, features=256
        ),
        projector=((4096, 3072), (3072, 3072)),
        vision_tokens=256,
    ),
    # https://github.com/dvlab-research/LISA: the language half (CLIP at 224 pixels, one linear projector, three added
    # tokens), without SAM.
    replace(_LLAVA_7B, name="lisa-7b", vocab=32003, vision=_CLIP_224, projector=((1024, 4096),), vision_tokens=256),
    replace(_LLAVA_13B, name="lisa-13b", vocab=32003, vision=_CLIP_224, projector=((1024, 5120),), vision_tokens=256),
    # Nobody's model: the shape of LLaVA-1.5 at 0.4 + 0.1 billion parameters, for benchmarks on a CPU.
    Geometry(
        name="llava-0.5b",
        layers=24,
        hidden=1024,
        heads=16,
        kv_heads=16,
        head_dim=64,
        ffn=2816,
        gated=True,
        vocab=32000,
        vision=replace(_CLIP_336, layers=12, hidden=768, ffn=3072, heads=12),
        projector=((768, 1024), (1024, 1024)),
        vision_tokens=576,
    ),
)

PRESETS: Mapping[str, Geometry] = {geometry.name: geometry for geometry in _ALL}
"""Geometries by name."""


def get_geometry(name_or_path: str | Path) -> Geometry:
    """Return a preset, or the geometry of a checkpoint's folder or config file.

    Parameters
    ----------
    name_or_path
        A key of :data:`PRESETS`, an embedded checkpoint such as ``shapes``, a folder with a ``config.json``, or
        a config file. Nothing is downloaded, and no code of the checkpoint is run.

    Raises
    ------
    ValueError
        For an unknown name, or a config that has no closed form (see :meth:`Geometry.from_config`).
    """
    found = geometry_or_config(name_or_path)
    if isinstance(found, Geometry):
        return found
    path = Path(name_or_path)
    if str(name_or_path) in EMBEDDED:
        return Geometry.from_config(found, str(name_or_path))
    return Geometry.from_config(found, name=path.stem if path.is_file() else path.resolve().name)


def geometry_or_config(name_or_path: str | Path) -> Geometry | PreTrainedConfig:
    """Return a preset, or the config of a checkpoint's folder or of a config file; see :func:`get_geometry`."""
    name, path = str(name_or_path), Path(name_or_path)
    if name in PRESETS:
        return PRESETS[name]
    if name in EMBEDDED:
        path = Path(checkpoint(name))
    if path.is_dir() and not (path / "config.json").is_file():
        raise ValueError(f"the folder {name} has no config.json.")
    if not path.exists():
        raise ValueError(
            f"unknown geometry {name!r}{suggest(name, list(PRESETS))} Valid: {', '.join([*PRESETS, *EMBEDDED])}, a "
            "folder with a config.json, or a config file."
        )
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{name} is no config that transformers can read: {first}") from None
    return config
