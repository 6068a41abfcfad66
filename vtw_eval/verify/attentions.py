"""Which attention implementations the engine serves, and which of them run here.

The engine cuts masks and calls no attention: what it serves is a kind of mask, see
:func:`vtw_eval.engine.masks.mask_kind`. Names are those of transformers
(https://huggingface.co/docs/transformers/attention_interface), of functions that somebody has registered there, and of
kernels on the Hub (https://huggingface.co/docs/transformers/kernel_doc/overview), such as
``kernels-community/flash-attn2``, whose masks are known once they are loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from vtw_eval.engine.masks import mask_kind
from vtw_eval.errors import suggest

_FLASH = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface", "flash_attention_4": ""}
"""FlashAttention by its names in transformers, and the module of its own package that transformers looks for; 4 shares
a module with 2, so that only a kernel tells."""

HUB = ("kernels-community/flash-attn2", "kernels-community/vllm-flash-attn3")
"""Kernels on the Hub that take the place of FlashAttention 2 and 3, for lists."""


@dataclass(frozen=True)
class AttentionStanding:
    """What is known of an attention implementation."""

    name: str
    refused: str
    """Why the engine does not cut its masks; empty if it does."""
    missing: str
    """What it needs and has not got here; empty if it runs."""

    def __str__(self) -> str:
        if self.refused:
            return f"refused: {self.refused}"
        return f"served; {self.missing} to run" if self.missing else "served"


def on_hub(name: str) -> bool:
    """Whether a name is that of a kernel on the Hub, ``owner/name``."""
    return "/" in name


def names() -> list[str]:
    """Return the names that transformers knows, and those of :data:`HUB`."""
    return list(dict.fromkeys(("eager", *AttentionMaskInterface().keys(), *HUB)))


def standing(name: str, device: torch.device) -> AttentionStanding:
    """Return what is known of an attention implementation.

    Parameters
    ----------
    name
        As in ``attn_implementation``.
    device
        Where the model is to run.

    Raises
    ------
    ValueError
        For a name that nobody knows.
    """
    known = AttentionMaskInterface()
    if name not in known and name != "eager" and not on_hub(name):
        if name in AttentionInterface():
            return AttentionStanding(name, "transformers knows no masks for it", "")
        listed = names()
        raise ValueError(
            f"attn_implementation={name!r} is unknown{suggest(name, listed)} Known: {', '.join(listed)}, and other "
            "kernels on the Hub."
        )
    refused = ""
    if name in known:
        try:
            mask_kind(name)
        except ValueError as error:
            refused = str(error).partition(":")[0]
    return AttentionStanding(name, refused, _missing(name, device))


def check_attention(name: str, device: torch.device) -> None:
    """Raise ``ValueError`` for an attention implementation that is unknown, or that cannot run on a device here."""
    found = standing(name, device)
    if found.missing:
        raise ValueError(f"attn_implementation={name!r} cannot run here: it needs {found.missing}. Or take 'sdpa'.")


def needs_gpu(name: str) -> bool:
    """Whether an implementation is one of those that run on GPUs only."""
    return name in _FLASH or on_hub(name)


def _missing(name: str, device: torch.device) -> str:
    """Return what an implementation needs, empty if it is there."""
    if not needs_gpu(name):
        return ""
    needs: list[str] = []
    if device.type == "cpu":
        needs.append("a GPU")
    if device.type in ("cpu", "cuda") and not _installed(name):
        own = "flash-attn (pip install --no-build-isolation 'vtw-eval[flash]') or "
        needs.append(f"{own if name == 'flash_attention_2' else ''}kernels (pip install kernels)")
    return " and ".join(needs)


def _installed(name: str) -> bool:
    """Whether the package that brings an implementation is there, or that which fetches a kernel in its place."""
    own: Sequence[str] = (_FLASH[name],) if _FLASH.get(name) else ()
    return any(find_spec(module) is not None for module in (*own, "kernels"))
