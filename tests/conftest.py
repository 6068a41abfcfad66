"""What every test needs."""

from __future__ import annotations

from collections.abc import Iterator

import av  # noqa: F401  before decord, whose own copies of codecs keep its encoders from opening
import pytest
import torch

pytest_plugins = ["tests.support.fixtures"]


@pytest.fixture(autouse=True)
def _gradients() -> Iterator[None]:
    """Begin each test with gradients on: importing VLMEvalKit switches them off for the whole process."""
    with torch.set_grad_enabled(True):
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest tests first, so that no worker waits for another at the end."""
    items.sort(key=lambda item: "sweep" not in item.path.parts)
