"""A pass leaves nothing that only Python's garbage collection can free: tensors of reference cycles stay on a GPU."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

from tests.methods.examples import EXAMPLES
from tests.support.families import make_inputs, make_model
from vtw_eval.methods import Method


@pytest.fixture
def _collecting_by_hand() -> Iterator[None]:
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    yield
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


@pytest.mark.usefixtures("_collecting_by_hand")
@pytest.mark.parametrize("method", [m for m in EXAMPLES.values() if "dyvte" not in str(m)], ids=str)
def test_a_pass_leaves_no_tensors_in_reference_cycles(method: Method) -> None:
    model = make_model("llava", attn="sdpa")
    inputs = make_inputs("llava", model, [["t3", "i", "t4"]])
    gc.collect()
    gc.garbage.clear()
    with torch.no_grad(), method(model):
        model(**inputs, use_cache=True)
    gc.collect()
    left = [type(thing).__name__ for thing in gc.garbage if isinstance(thing, torch.Tensor)]
    assert not left
