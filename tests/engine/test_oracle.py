"""VTW equals masking: families x attention x kinds of input x k, prefill and generation."""

from __future__ import annotations

import pytest

from tests.support.families import VIDEO
from tests.support.oracle import CASES, FLASH, KINDS, compare, models

# Eager attention computes its softmax in float32. Rotary tables are float32 in every model, and the oracle numbers
# positions from the left of the padding while generation does not, so decoding agrees to the rounding of those tables.
TOLERANCE = {"eager": 1e-5, "sdpa": 1e-12, FLASH: 1e-12}
DECODE_TOLERANCE = 1e-5


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_withdrawal_equals_masking(name: str, attention: str) -> None:
    layers = models(name, attention)[0].config.get_text_config(decoder=True).num_hidden_layers
    for kind in KINDS:
        if kind == "video" and name not in VIDEO:
            continue
        for k in (0, 1, layers // 2, layers - 1, layers):
            difference = compare(name, attention, kind, k)
            assert difference.prefill < TOLERANCE[attention], (kind, k)
            assert difference.decode < DECODE_TOLERANCE, (kind, k)
