"""What a plan says of a curve: VTW at every k, answered at once."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from vtw_eval.record.strict import Strict


class CurveEntry(Strict):
    """The curve of one model."""

    model: str
    """Name of a model of the plan."""
    tasks: list[str] | None = Field(default=None, min_length=1)
    """``None``: those of the plan."""
    k: list[int] | None = Field(default=None, min_length=1)
    """Numbers of layers that see the image; ``None``: all below the number of layers. The unchanged model is there in
    any case."""

    @field_validator("k", mode="before")
    @classmethod
    def _numbers(cls, k: Any) -> Any:
        wrong = [value for value in k if isinstance(value, bool)] if isinstance(k, list) else []
        if wrong:
            raise ValueError(f"Input should be an integer, not {wrong[0]}, as which YAML reads yes, no, on and off.")
        return k


def check_curves(curves: list[CurveEntry], models: list[str]) -> None:
    """Raise ``ValueError`` unless each curve is of another model of a plan.

    Parameters
    ----------
    curves
        Of the plan.
    models
        Names of its models.
    """
    named = [curve.model for curve in curves]
    for number, name in enumerate(named):
        if name not in models:
            raise ValueError(f"curves[{number}].model: {name!r} is no model of the plan: {', '.join(models)}.")
        if named.count(name) > 1:
            raise ValueError(f"curves: {name!r} stands twice; name all its tasks in one entry.")
