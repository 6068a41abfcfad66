"""Devices, number types and the end of memory are told by one place for all."""

from __future__ import annotations

import pytest
import torch

from vtw_eval.runtime import device_name, environment_line, is_out_of_memory, parse_dtype, pick_device
from vtw_eval.versions import installed


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_the_end_of_memory_is_known_by_its_words(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_a_real_failed_allocation_is_one() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)


def test_a_device_is_picked_by_name_or_by_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device() == pick_device("None") == torch.device("cuda")
    assert pick_device("cpu") == torch.device("cpu") and pick_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="'cuda:2' is not there: this machine has 2"):
        pick_device("cuda:2")
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        pick_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device() == torch.device("cpu")


def test_number_types() -> None:
    assert parse_dtype("bfloat16") == torch.bfloat16
    for name, close in (("flaot32", "did you mean 'float32'"), ("int8", "Valid: float32"), ("nn", "Valid")):
        with pytest.raises(ValueError, match=close):
            parse_dtype(name)


def test_one_line_tells_what_computes() -> None:
    assert f"torch {installed('torch')}" in environment_line() and "\n" not in environment_line()
    assert device_name(torch.device("cpu")).startswith("cpu: ")
