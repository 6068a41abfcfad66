"""Names of checkpoints: folders, ids of the Hub, :data:`EMBEDDED` ones; and what the papers' ones are.

VTW: https://arxiv.org/abs/2405.05803 (k: Tables 2, 3 and 8; eta: its code). DyVTE: https://arxiv.org/abs/2411.19628.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_SHAPES = Path(__file__).parent / "shapes"
CHECKPOINT = _SHAPES / "checkpoint"
"""Folder of the embedded checkpoint ``shapes``."""

EMBEDDED: Mapping[str, Path] = {
    "shapes": CHECKPOINT,
    "boards": _SHAPES / "boards" / "checkpoints" / "llava",
    "boards_qwen2_vl": _SHAPES / "boards" / "checkpoints" / "qwen2_vl",
    "boards_internvl": _SHAPES / "boards" / "checkpoints" / "internvl",
    "moves_video_llava": _SHAPES / "moves" / "checkpoints" / "video_llava",
}
"""What embedded checkpoints are called wherever a checkpoint is named, and their folders."""

_LLAVA_1_5 = r"llava-v?1\.5"


@dataclass(frozen=True, kw_only=True)
class Known:
    """A checkpoint that the papers report, or whose sizes are known."""

    name: str
    """What the tables call it."""
    hub: tuple[str, ...]
    """Its ids on the Hub; the first is in the format that the adapter opens."""
    pattern: str
    """What names of its folders and ids hold, whatever their case."""
    adapter: str
    geometry: str
    """Its sizes, a name in :data:`vtw_eval.cost.PRESETS`."""
    k: int | None = None
    """VTW's layer in the paper; None where the paper does not report the checkpoint."""
    eta: float = 0.003
    """Threshold of the search for k in the paper's code; the paper states 0.003."""
    trust_remote_code: bool = False
    """Whether the only released code of the first id is its own."""


KNOWN = (
    Known(
        name="LLaVA-1.5-7B",
        hub=("llava-hf/llava-1.5-7b-hf", "liuhaotian/llava-v1.5-7b"),
        pattern=rf"{_LLAVA_1_5}-7b",
        adapter="llava_vtw",
        geometry="llava-1.5-7b",
        k=16,
    ),
    Known(
        name="LLaVA-1.5-13B",
        hub=("llava-hf/llava-1.5-13b-hf", "liuhaotian/llava-v1.5-13b"),
        pattern=rf"{_LLAVA_1_5}-13b",
        adapter="llava_vtw",
        geometry="llava-1.5-13b",
        k=20,
        eta=0.0005,
    ),
    Known(
        name="LLaVA-NeXT-7B",
        hub=("llava-hf/llava-v1.6-vicuna-7b-hf", "liuhaotian/llava-v1.6-vicuna-7b"),
        pattern=r"llava-v1\.6-vicuna-7b",
        adapter="llava_vtw",
        geometry="llava-next-7b",
        k=16,
        eta=0.0001,
    ),
    Known(
        name="Video-LLaVA-7B",
        hub=("LanguageBind/Video-LLaVA-7B-hf", "LanguageBind/Video-LLaVA-7B"),
        pattern="video-llava-7b",
        adapter="video_llava_vtw",
        geometry="video-llava-7b",
        k=16,
    ),
    Known(
        name="Qwen2-VL-2B",
        hub=("Qwen/Qwen2-VL-2B-Instruct",),
        pattern="qwen2-vl-2b",
        adapter="qwen2vl_vtw",
        geometry="qwen2-vl-2b",
        k=18,
    ),
    Known(
        name="Qwen2-VL-7B",
        hub=("Qwen/Qwen2-VL-7B-Instruct",),
        pattern="qwen2-vl-7b",
        adapter="qwen2vl_vtw",
        geometry="qwen2-vl-7b",
    ),
    Known(
        name="InternVL2-4B",
        hub=("OpenGVLab/InternVL2-4B",),
        pattern="internvl2-4b",
        adapter="internvl_vtw",
        geometry="internvl2-4b",
        k=16,
        trust_remote_code=True,
    ),
)
"""Each such checkpoint."""


def known(name: str) -> Known | None:
    """Return what is known of a checkpoint by its name: an id of the Hub, or a folder that is called like one."""
    return next((entry for entry in KNOWN if re.search(entry.pattern, name, re.IGNORECASE)), None)


def is_llava_1_5(name: str) -> bool:
    """Tell whether a name is that of a LLaVA-1.5, of any size and training."""
    return re.search(_LLAVA_1_5, name, re.IGNORECASE) is not None


def checkpoint(name: str) -> str:
    """Return what transformers opens for the name of a checkpoint.

    Parameters
    ----------
    name
        A folder or an id of the Hub, which stay as they are, or a name in :data:`EMBEDDED`. A folder of that name in
        the working directory that holds a ``config.json`` is meant before the embedded checkpoint; a warning tells so.

    Returns
    -------
    str
        A folder or an id of the Hub.
    """
    if name not in EMBEDDED:
        return name
    if (Path(name) / "config.json").is_file():
        warnings.warn(
            f"{name!r} is the checkpoint in the folder {Path(name).absolute()}, not vtw-eval's embedded one of "
            f"the same name, which is opened where no such folder holds a config.json, or as {EMBEDDED[name]}.",
            stacklevel=2,
        )
        return str(Path(name).absolute())
    return str(EMBEDDED[name])
