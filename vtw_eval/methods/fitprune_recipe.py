"""FitPrune's recipe for a checkpoint: a file that ``vtw-eval fit-fitprune`` writes and ``fitprune,recipe=`` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from vtw_eval.record.strict import Strict


class Recipe(Strict):
    """How many vision tokens leave after each layer, and on what that was fitted."""

    version: Literal[1] = 1
    checkpoint: str
    """Which it was fitted to."""
    vision: int = Field(ge=1)
    """Vision tokens of a prompt."""
    deleted: tuple[int, ...] = Field(min_length=1)
    """How many of them leave after each layer."""
    alpha: float
    """Share of either attention that a layer may lose."""
    reduction: float
    """Of what vision tokens cost in the decoder layers."""
    tasks: tuple[str, ...]
    documents: int
    """How many prompts were looked at."""
    command: str
    environment: str

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if min(self.deleted) < 0 or sum(self.deleted) > self.vision:
            raise ValueError(f"{sum(self.deleted)} of {self.vision} vision tokens cannot leave")
        return self


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    ValueError
        If there is none, or it is no recipe.
    """
    try:
        return Recipe.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        raise ValueError(f"recipe={path}: {error.strerror or error}. `vtw-eval fit-fitprune` makes one.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ValueError(
            f"recipe={path} is no recipe of fitprune ({where}: {first['msg']}). `vtw-eval fit-fitprune` makes one."
        ) from None
