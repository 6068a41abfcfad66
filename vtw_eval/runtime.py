"""What numbers are computed on: devices, number types, the end of memory, and one line on all of it."""

from __future__ import annotations

import gc
import platform
from pathlib import Path

import torch

from vtw_eval.errors import suggest
from vtw_eval.versions import environment

_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "cublas_status_alloc_failed")
"""Words of failed allocations on the CPU and in CUDA's libraries, which torch reports as a bare RuntimeError."""

DTYPES = ("float32", "bfloat16", "float16", "float64")
"""Number types that a model can compute in."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception means that an accelerator's or the machine's memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)


def free_memory() -> None:
    """Give back what nobody uses; call it outside of the handler of an error, whose traceback holds tensors."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def pick_device(name: str | None = None) -> torch.device:
    """Return a device by its name; without one (None or "None"), a GPU if there is one and else the CPU.

    Raises
    ------
    ValueError
        For a name that torch does not know, or a GPU that this machine does not have.
    """
    if name in (None, "None"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(str(name))
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}: choose cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise ValueError(f"device {name!r} is not there: this machine has {count} CUDA devices.")
    return device


def parse_dtype(name: str) -> torch.dtype:
    """Return one of :data:`DTYPES` by its name.

    Raises
    ------
    ValueError
        For an unknown name.
    """
    if name not in DTYPES:
        raise ValueError(f"unknown dtype {name!r}{suggest(name, DTYPES)} Valid: {', '.join(DTYPES)}.")
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def device_name(device: torch.device) -> str:
    """Return the kind of a device and what the machine calls it."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"cpu: {names[0] if names else platform.processor() or platform.machine()}"


def environment_line() -> str:
    """Return :func:`vtw_eval.versions.environment` in one line, with CUDA's version where there is a GPU."""
    found = environment()
    versions = [f"{name} {found[name]}" for name in ("vtw-eval", "engine", "transformers", "torch")]
    cuda = f", CUDA {torch.version.cuda}" if torch.cuda.is_available() else ""
    return f"{', '.join(versions)}{cuda}; Python {found['python']}, {found['platform']}"
