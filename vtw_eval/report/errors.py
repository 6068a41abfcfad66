"""What a report refuses."""

from __future__ import annotations


class ReportError(ValueError):
    """Results from which no right table can be made; the message says why and what would help."""
