"""What trainers share: their state on disk, in one safetensors file, and the learning rate of a step."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from vtw_eval.files import atomically


def cosine(step: int, steps: int, warmup: int) -> float:
    """Return the learning rate of a step as a share of the highest: linear warm-up, then a cosine to zero.

    A function of the step alone, unlike torch's schedulers, so that an interrupted run has nothing to restore.
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def save_state(
    path: Path,
    module: nn.Module,
    optimisers: Sequence[torch.optim.Optimizer],
    run: Mapping[str, Any],
    counters: Mapping[str, Any],
) -> None:
    """Write weights, moments and counters; a reader or a crash never sees half of it.

    Parameters
    ----------
    path
        The file.
    module
        The module in training.
    optimisers
        Its optimisers; all that they keep of a parameter are tensors.
    run
        JSON-able settings, which a run that goes on from the state must have too.
    counters
        JSON-able numbers and names, given back by :func:`read_counters`.
    """
    tensors = {}
    for name, parameter in module.named_parameters():
        tensors[f"weight/{name}"] = parameter.detach().contiguous()
        for optimiser in optimisers:
            for key, value in optimiser.state.get(parameter, {}).items():
                tensors[f"{key}/{name}"] = value.contiguous()
    with atomically(path) as part:
        save_file(tensors, part, metadata={"about": json.dumps({"run": dict(run), "counters": dict(counters)})})


def read_counters(path: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the counters of a state file.

    Parameters
    ----------
    path
        A file written by :func:`save_state`.
    run
        Settings of the run that is to go on from it.

    Raises
    ------
    ValueError
        If the state is that of a run with other settings.
    """
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["about"])
    if about.get("run") != json.loads(json.dumps(dict(run))):
        other = json.dumps(about.get("run"))
        raise ValueError(f"{path} belongs to another run ({other}): give the same options again, or remove it.")
    return about["counters"]


def load_state(path: Path, module: nn.Module, optimisers: Sequence[torch.optim.Optimizer]) -> None:
    """Put a state's weights and moments back, in place.

    Parameters
    ----------
    path
        A file written by :func:`save_state`.
    module
        A module with the same parameters.
    optimisers
        Its optimisers.

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
            kept = {
                key.removesuffix(f"/{name}"): file.get_tensor(key)
                for key in names
                if key.endswith(f"/{name}") and key.partition("/")[2] == name and not key.startswith("weight/")
            }
            for optimiser in optimisers:
                if kept and any(parameter is p for group in optimiser.param_groups for p in group["params"]):
                    device = {key: "cpu" if key == "step" else parameter.device for key in kept}
                    optimiser.state[parameter] = {key: value.to(device[key]) for key, value in kept.items()}
