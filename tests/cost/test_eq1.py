"""Eq. 1 of the VTW paper."""

import pytest
import torch

from vtw_eval.cost import eq1_prefill_flops


def test_eq1_equals_the_sum_written_out() -> None:
    tokens = torch.tensor([[641, 641, 65], [10, 3, 0]])
    expected = [2 * sum(2 * s * s * 4096 + 12 * s * 4096 * 4096 for s in row) for row in tokens.tolist()]
    assert eq1_prefill_flops(tokens, 4096).tolist() == expected


def test_eq1_on_the_papers_baseline() -> None:
    # LLaVA-1.5-7B on MME: 641.9 tokens on average, 32 layers of width 4096. The paper's Table 2 prints 8.48 TFLOPs,
    # which is another convention; Eq. 1 itself gives 8.487 there.
    tokens = torch.full((1, 32), 641.9, dtype=torch.float64)
    assert eq1_prefill_flops(tokens, 4096).item() / 1e12 == pytest.approx(8.487, abs=5e-4)
