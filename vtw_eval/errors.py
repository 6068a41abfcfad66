"""Exceptions in messages."""

from __future__ import annotations


def named(error: BaseException | None) -> str:
    """Return an exception's type and message in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
