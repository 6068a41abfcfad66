"""Methods at equal cost: how strongly each has to act so that all of them cost the same."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from vtw_eval.cost.dry_run import dry_run, nominal
from vtw_eval.cost.exact import exact_prefill_flops
from vtw_eval.cost.geometry import Geometry
from vtw_eval.methods import Baseline, Method

TOLERANCE = 0.01
"""By which the cost of a method may differ from a budget, relatively."""

_HALVINGS = 16
"""Of the strengths from 0 to 1: one vision token of 65,536 can be told from the next."""


@dataclass(frozen=True)
class Fit:
    """A method as near to a budget as it comes."""

    method: Method
    share: float
    """FLOPs of the prefill, of the unchanged model's, by ``exact``; what the method computes to choose is not in it."""
    problem: str = ""
    """Why it is farther from the budget than :data:`TOLERANCE`; empty if it is not."""
    reachable: bool = True
    """Whether it only misses because it acts in large steps: the budget is between what it costs at most and least."""
    nominal: bool = False
    """Whether the share is that of what the method is asked for; what it keeps of a video depends on the video."""


def fit_flops(
    method: Method, geometry: Geometry, budget: float, *, text: float, vision: float, frames: int | None = None
) -> Fit:
    """Set a method's own parameters for how much goes so that the prefill costs a share of the unchanged model's.

    Parameters
    ----------
    method
        The method; its other parameters stay.
    geometry
        Sizes of the model.
    budget
        FLOPs of the prefill by ``exact``, of the unchanged model's, above 0 and up to 1.
    text, vision
        Text and vision tokens of the prompt.
    frames
        The vision tokens are those of a video of so many frames; None for one image.

    Raises
    ------
    ValueError
        If the budget is impossible, or what the method does depends on the model's weights
        (:func:`~vtw_eval.cost.dry_run.dry_run`).
    """
    if not 0 < budget <= 1:
        raise ValueError(f"a budget of {budget:g} is out of range: it is a share of the unchanged model's FLOPs, 0..1.")

    def share(candidate: Method) -> float:
        flops = [_flops(each, geometry, text, vision, frames) for each in (candidate, Baseline())]
        return flops[0] / flops[1]

    def fit(candidate: Method, problem: str, reachable: bool = False) -> Fit:
        far = abs(share(candidate) - budget) > TOLERANCE * budget
        about = frames is not None and nominal(candidate) != candidate
        return Fit(candidate, share(candidate), problem if far else "", reachable or not far, about)

    weakest, strongest = method.scaled(0, geometry.layers), method.scaled(1, geometry.layers)
    if weakest is None or strongest is None:
        return fit(method, "it has no parameter for how much goes")
    most, least = share(weakest), share(strongest)
    if not least <= budget <= most:
        return fit(weakest if budget > most else strongest, f"it costs {least:.1%} to {most:.1%}")
    # More strength costs less. The nearest on either side is among those that halving the interval has met.
    met, low, high = [weakest, strongest], 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        candidate = method.scaled(middle, geometry.layers)
        assert candidate is not None
        met.append(candidate)
        low, high = (middle, high) if share(candidate) > budget else (low, middle)
    return fit(
        min(met, key=lambda candidate: abs(share(candidate) - budget)), "its steps are larger than that", reachable=True
    )


@functools.lru_cache(maxsize=1024)  # methods and budgets share the unchanged model, and many strengths
def _flops(method: Method, geometry: Geometry, text: float, vision: float, frames: int | None) -> float:
    run = dry_run(method, geometry.layers, text=text, vision=vision, name=geometry.name, frames=frames)
    return float(exact_prefill_flops(run.tokens, geometry, updated=run.updated).mean())
