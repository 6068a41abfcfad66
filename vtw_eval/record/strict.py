"""The base of everything that is kept."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Takes no unknown keys and no infinities, and does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
