"""Muon: steps for weight matrices along the nearest orthogonal matrix of their momentum (Jordan et al., 2024).

https://kellerjordan.github.io/posts/muon. torch has it from 2.9 on; this one also takes matrices of a shape together,
as a small model has dozens of each.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch


def orthogonal(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Return about the nearest (semi-)orthogonal matrices: singular values go to 0.7 to 1.2, vectors stay.

    Parameters
    ----------
    matrices
        [..., rows, columns].
    steps
        Iterations of a quintic Newton-Schulz polynomial with the coefficients of the publication.

    Returns
    -------
    torch.Tensor
        float32, of the same shape.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.float()
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal; for the matrices inside a network, not for embeddings.

    Parameters
    ----------
    params
        Two-dimensional parameters, or groups of them.
    lr
        Learning rate: a step's change has about this spectral norm, times sqrt(max(1, rows / columns)).
    momentum
        Share of the momentum that is kept.
    weight_decay
        Decay, a share of the learning rate.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 0.0,
        momentum: float = 0.95,
        weight_decay: float = 0.05,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Change the parameters in place."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[tuple[torch.nn.Parameter, torch.Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                momentum = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
                ahead = parameter.grad.lerp(momentum, group["momentum"])
                shapes[parameter.shape].append((parameter, ahead))
            for (rows, columns), alike in shapes.items():
                rate = group["lr"] * max(1, rows / columns) ** 0.5
                changes = orthogonal(torch.stack([ahead for _, ahead in alike]))
                for (parameter, _), change in zip(alike, changes, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(change, alpha=rate)


def optimisers(
    parameters: Iterable[tuple[str, torch.nn.Parameter]], scale: Callable[[str], float]
) -> list[torch.optim.Optimizer]:
    """Return fresh optimisers: Muon of the matrices inside the networks, AdamW of embeddings, heads and all else.

    Parameters
    ----------
    parameters
        Names and parameters.
    scale
        Gives the factor on the learning rates by a parameter's name, which its group keeps as ``scale``; those of
        factor 0 are left out.
    """
    matrices: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for name, parameter in parameters:
        factor = scale(name)
        if not factor:
            continue
        inside = parameter.ndim == 2 and "embed" not in name and "heads" not in name
        groups = matrices if inside else others
        group = next((group for group in groups if group["scale"] == factor), None)
        if group is None:
            groups.append(group := {"params": [], "scale": factor})
        group["params"].append(parameter)
    return [
        Muon(matrices),
        torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.95), weight_decay=0.01, fused=True),
    ]
