"""Gates of DyVTE for tiny models: random ones, and ones with a known decision."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from vtw_eval import Composite, DyVTE, Method
from vtw_eval.anatomy import find_anatomy
from vtw_eval.methods.dyvte.gates import Gates, save_gates

_FOLDER = tempfile.TemporaryDirectory()


@functools.cache
def _random_file(hidden_size: int, num_layers: int, seed: int) -> str:
    path = Path(_FOLDER.name, f"{hidden_size}-{num_layers}-{seed}.safetensors")
    save_gates(Gates(hidden_size, num_layers, inner=16).initialise(seed), path)
    return str(path)


def random_gates(model: nn.Module, seed: int = 0) -> str:
    """Return a file of random gates for a model: each row exits after each layer about half of the time."""
    anatomy = find_anatomy(model)
    return _random_file(anatomy.hidden_size, anatomy.num_layers, seed)


def fitted(method: Method, model: nn.Module, seed: int = 0) -> Method:
    """Give the method random gates for a model where it needs some."""
    if isinstance(method, Composite):
        return replace(method, parts=tuple(fitted(part, model, seed) for part in method.parts))
    return replace(method, gates=random_gates(model, seed)) if isinstance(method, DyVTE) else method


@torch.no_grad()
def decided(gate: nn.Module, leave: bool) -> None:
    """Set a gate so that it decides the same on whatever it sees, as GELU(x) + GELU(-x) = x erf(x / sqrt 2) > 0."""
    half = torch.randn(gate.w1.shape[0], gate.w1.shape[1] // 2)
    gate.w1.copy_(torch.cat([half, -half], dim=1))
    gate.w2.zero_()[:, int(leave)] = 1
