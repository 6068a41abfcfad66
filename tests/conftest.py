"""What every test needs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _gradients() -> Iterator[None]:
    """Begin each test with gradients on: importing VLMEvalKit switches them off for the whole process."""
    with torch.set_grad_enabled(True):
        yield
