"""Units in which tables show FLOPs."""

from __future__ import annotations

_UNITS = ((1e12, "TFLOPs"), (1e9, "GFLOPs"), (1e6, "MFLOPs"))


def flops_unit(largest: float) -> tuple[float, str]:
    """Return the unit, in FLOPs and by name, in which a table shows costs up to ``largest``."""
    return next(((unit, name) for unit, name in _UNITS if largest >= 0.1 * unit), _UNITS[-1])
