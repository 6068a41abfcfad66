"""``--model-args`` of the sub-commands that take methods one by one."""

from __future__ import annotations

from typing import Any


def adapter_arguments(command: str, model_args: str, device: str | None, *, verify: bool) -> dict[str, Any]:
    """Return the options of the adapter, with the unchanged model as its method.

    Parameters
    ----------
    command
        Name of the sub-command, for messages.
    model_args
        As given to ``--model-args``.
    device
        As given to ``--device``.
    verify
        Whether methods are compared with masked attention first.

    Raises
    ------
    ValueError
        If they are not of the form name=value, name no checkpoint, or name what has an option of its own.
    """
    from vtw_eval.models.options import check_unique_names

    check_unique_names(model_args)
    entries = (part.strip().partition("=") for part in model_args.split(",") if part.strip())
    given: dict[str, Any] = {name.strip(): value.strip() for name, _, value in entries}
    for name, better in {"method": "--method", "device": "--device", "verify": "--no-verify"}.items():
        if name in given:
            raise ValueError(f"{name} does not belong into --model-args of {command}: use {better}.")
    if "pretrained" not in given:
        raise ValueError("--model-args must name the checkpoint: pretrained=...")
    if device is not None:
        given["device"] = device
    return {**given, "method": "baseline", "verify": verify}
