"""Units in which tables show FLOPs."""

from __future__ import annotations

_UNITS = ((1e12, "TFLOPs"), (1e9, "GFLOPs"), (1e6, "MFLOPs"))


def flops_unit(largest: float) -> tuple[float, str]:
    """Return the unit, in FLOPs and by name, in which a table shows costs up to ``largest``."""
    return next(((unit, name) for unit, name in _UNITS if largest >= 0.1 * unit), _UNITS[-1])


def bytes_text(count: float) -> str:
    """Return a number of bytes in GiB, or in MiB below one."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
