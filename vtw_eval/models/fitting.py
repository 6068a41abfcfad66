"""FitPrune's recipe for the model of a runner, fitted to prompts of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from vtw_eval.methods.fitprune_fit import fit_table
from vtw_eval.methods.fitprune_recipe import Recipe
from vtw_eval.models.blank import as_asked
from vtw_eval.models.requests import Request, named
from vtw_eval.models.runner import Runner
from vtw_eval.runtime import environment_line


def fit_recipe(
    runner: Runner,
    requests: Sequence[Request],
    reduction: float,
    *,
    command: str = "",
    advance: Callable[[], None] = lambda: None,
) -> Recipe:
    """Fit FitPrune's table to documents, see :func:`vtw_eval.methods.fitprune_fit.fit_table`.

    Parameters
    ----------
    runner
        Holds the unchanged model.
    requests
        The documents.
    reduction
        Share of the cost of vision tokens that is to go, above 0 and below 1.
    command
        That asked for it, for the recipe.
    advance
        Called after each document, for a progress bar.

    Raises
    ------
    ValueError
        See there; also for remote code, whose prompts do not go through the model's forward.
    """
    family = runner.family

    def samples() -> Iterator[Mapping[str, Any]]:
        for request in requests:
            with named(request):
                encoded = family.encode([as_asked(request.build(family), runner.options)])
            if encoded.vision_mask is not None:
                raise ValueError("fitprune's recipe cannot be fitted to a checkpoint that brings its own code.")
            yield encoded.inputs

    found = fit_table(family.model, samples(), reduction, advance=advance)
    return Recipe(
        checkpoint=runner.options.pretrained,
        vision=found.vision,
        deleted=found.deleted,
        alpha=found.alpha,
        reduction=found.reduction,
        tasks=tuple(dict.fromkeys(request.task for request in requests)),
        documents=len(requests),
        command=command,
        environment=environment_line(),
    )
