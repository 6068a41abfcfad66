"""The trainer's state on disk: weights, optimiser moments and counters, in one safetensors file, written atomically."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from vtw_eval.files import atomically


def save_state(path: Path, module: nn.Module, optimiser: torch.optim.AdamW, about: dict[str, Any]) -> None:
    """Write the state; a reader or a crash never sees half of it.

    Parameters
    ----------
    path
        The file; its directory must exist.
    module
        The module in training.
    optimiser
        Its AdamW optimiser.
    about
        JSON-able counters and settings, given back by :func:`load_state`.
    """
    tensors = {}
    for name, parameter in module.named_parameters():
        tensors[f"weight/{name}"] = parameter.detach().contiguous()
        for key, value in optimiser.state.get(parameter, {}).items():
            tensors[f"{key}/{name}"] = value.contiguous()
    with atomically(path) as part:
        save_file(tensors, part, metadata={"about": json.dumps(about)})


def read_about(path: Path) -> dict[str, Any]:
    """Read the counters and settings of a state file without its tensors."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["about"])


def load_state(path: Path, module: nn.Module, optimiser: torch.optim.AdamW) -> None:
    """Put a state's weights and moments back, in place.

    Parameters
    ----------
    path
        A file written by :func:`save_state`.
    module
        A module with the same parameters.
    optimiser
        Its optimiser.

    Raises
    ------
    KeyError
        If the file lacks a weight of the module.
    """
    with safe_open(path, "pt") as file:
        names = set(file.keys())
        for name, parameter in module.named_parameters():
            if f"weight/{name}" not in names:
                raise KeyError(f"{path} has no weight {name!r}: it was written by another version of the trainer")
            parameter.data.copy_(file.get_tensor(f"weight/{name}"))
            moments = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}/{name}" in names]
            if moments:
                optimiser.state[parameter] = {key: file.get_tensor(f"{key}/{name}") for key in moments}
