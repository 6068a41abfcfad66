"""The verdict on a method, a model and the installed packages: found once, then kept on disk."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from vtw_eval.anatomy import check_support, find_anatomy
from vtw_eval.files import cache_home, write_atomically
from vtw_eval.methods import Method
from vtw_eval.methods.sockets import foreign_code
from vtw_eval.runtime import is_out_of_memory
from vtw_eval.verify.check import MismatchError, Subject, check_method, check_search, make_subject
from vtw_eval.verify.tiny import shrink
from vtw_eval.versions import blame, environment

_SUBJECTS = 4
"""Tiny models that are kept for further methods."""


class VerificationError(RuntimeError):
    """A method does not compute what it should with the installed packages, or nobody can tell."""


class Verdict(BaseModel):
    """That a method does what it should, and on what that was seen."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    verified: bool
    reason: str = ""
    """Why not, where nobody has looked."""
    checks: tuple[str, ...] = ()
    """What was compared: see :func:`vtw_eval.verify.check.check_method`."""
    environment: dict[str, str] = {}
    """Versions and platform."""

    def __str__(self) -> str:
        if not self.verified:
            return f"not verified ({self.reason})"
        versions = ", ".join(f"{name} {self.environment[name]}" for name in ("torch", "transformers"))
        return f"verified with {versions}"


def skipped(reason: str) -> Verdict:
    """Return the verdict of a run that was not checked."""
    return Verdict(verified=False, reason=reason)


def verify(model: nn.Module, method: Method) -> Verdict:
    """Make sure that a method does what it should on models of this kind, with the installed packages.

    A tiny random model with the same architecture and as many layers is compared with an oracle that masks instead of
    removing, see :mod:`vtw_eval.verify.check`. A good verdict is kept in the user's cache, so that this happens once
    for each combination of versions, architecture, attention implementation and method.

    Parameters
    ----------
    model
        The loaded model. Nothing of it but its config is looked at.
    method
        Bound to the model; with ``k=search``, the search is checked too.

    Returns
    -------
    Verdict
        Verified; or not, with the reason, for remote code, which cannot be made small.

    Raises
    ------
    VerificationError
        If something differs, with what differs and which versions are known to work.
    """
    anatomy = find_anatomy(model)
    if not type(model).__module__.startswith("transformers."):
        return skipped("code that comes with a checkpoint cannot be made small")
    attention = anatomy.attention or "sdpa"
    config: Any = model.config
    own = attention not in ("eager", "sdpa")  # FlashAttention and kernels of the Hub run on GPUs only
    device = next(model.parameters()).device if own else torch.device("cpu")
    return verify_config(config, method, attention, device=device)


def verify_config(
    config: PreTrainedConfig, method: Method, attention: str, *, device: torch.device | None = None, fresh: bool = False
) -> Verdict:
    """Make sure that a method does what it should on models with a config; see :func:`verify`.

    Parameters
    ----------
    config
        Of a vision-language model.
    method
        Bound to a model with as many layers.
    attention
        Attention implementation.
    device
        Where the tiny model runs; None for the CPU.
    fresh
        Find the verdict anew, also if there is one on disk.
    """
    device = device or torch.device("cpu")
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16  # FlashAttention's kernels know 16 bits only
    small = shrink(config)
    path = _path(small, method, attention, dtype, device)
    if not fresh and (found := _read(path)) is not None:
        return found
    try:
        with _one_thread():
            checks = _check(small, method, attention, dtype, device)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        what = str(error) if isinstance(error, MismatchError) else f"{type(error).__name__}: {error}"
        raise VerificationError(
            f"{method} does not compute what it should on a small {config.model_type} with {attention} attention: "
            f"{what}. {blame(('transformers', 'torch'))} To go on all the same, skip the check (--no-verify, or "
            "verify=False among the model's arguments); the results will say so."
        ) from error
    verdict = Verdict(verified=True, checks=checks, environment=environment())
    _write(path, verdict)
    return verdict


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run on one CPU thread: in models this small, threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check(
    small: PreTrainedConfig, method: Method, attention: str, dtype: torch.dtype, device: torch.device
) -> tuple[str, ...]:
    subject = _subject(_text(small), attention, dtype, device)
    check_support(find_anatomy(subject.model), allow_untested=True)
    if method.search is None:
        return check_method(subject, method)
    found = method.found(find_anatomy(subject.model).num_layers // 2)
    return (*check_method(subject, found), *check_search(subject))


@functools.lru_cache(maxsize=_SUBJECTS)
def _subject(text: str, attention: str, dtype: torch.dtype, device: torch.device) -> Subject:
    return make_subject(AutoConfig.for_model(**json.loads(text)), attention, dtype, device)


def _text(config: PreTrainedConfig) -> str:
    return json.dumps(config.to_dict(), sort_keys=True, default=str)


def _path(small: PreTrainedConfig, method: Method, attention: str, dtype: torch.dtype, device: torch.device) -> Path:
    """Return where a verdict is kept: a hash of all that it depends on."""
    facts = [_text(small), str(method), foreign_code(method), attention, str(dtype), device.type, environment()]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return cache_home() / "verified" / f"{digest[:24]}.json"


def _read(path: Path) -> Verdict | None:
    try:
        return Verdict.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _write(path: Path, verdict: Verdict) -> None:
    try:
        write_atomically(path, verdict.model_dump_json(indent=1) + "\n")
    except OSError:  # a cache that cannot be written costs a second each time
        return
