"""Weights that are not those of the checkpoint alone: in 8 or 4 bits, or with an adapter of PEFT beside them.

The engine hooks modules and never reads their weights, so that both run as their own forward says; what a number then
means is in ``docs/models.md``.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vtw_eval.anatomy import find_anatomy
from vtw_eval.models.options import Options
from vtw_eval.runtime import DTYPES, parse_dtype
from vtw_eval.versions import UNINSTALLED, installed

_NAME = "default"
"""What PEFT calls the one adapter of a model."""

_ODD = {
    "alora_invocation_tokens": "it acts from certain tokens on only (aLoRA), which a method may remove",
    "arrow_config": "it chooses among several adapters (Arrow)",
    "layer_replication": "it runs layers several times",
    "target_parameters": "it changes parameters of experts, which are no linear layers",
}
"""What a LoRA may be beside an addend to weights, by the setting that says so."""


def bits(model: Any) -> int | None:
    """Return the bits of a loaded model's weights where bitsandbytes keeps them, else None."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        return None
    return 8 if quantizer.quantization_config.load_in_8bit else 4


def quantization(options: Options, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` that quantize a checkpoint; none for one that is so already.

    8 bits are LLM.int8 (https://arxiv.org/abs/2208.07339), 4 bits NF4 (https://arxiv.org/abs/2305.14314) with products
    in the type of the other weights, both of bitsandbytes and of all linear layers but the head, as transformers does.

    Parameters
    ----------
    options
        The adapter's options.
    config
        The checkpoint's ``config.json``.

    Raises
    ------
    ValueError
        For a checkpoint that is quantized otherwise, or twice; without bitsandbytes.
    """
    own = config.get("quantization_config")
    asked = options.load_in_8bit or options.load_in_4bit
    if own is not None:
        by_bits = own.get("load_in_8bit") or own.get("load_in_4bit")
        method = own.get("quant_method") or ("bitsandbytes" if by_bits else "")
        if method != "bitsandbytes":
            raise ValueError(
                f"{options.pretrained} is quantized by {method or 'a method that its config does not name'}: of "
                "quantized checkpoints those of bitsandbytes are tested. Take the unquantized checkpoint, with "
                "load_in_8bit=True or load_in_4bit=True if it must be small."
            )
        if asked:
            raise ValueError(
                f"{options.pretrained} is quantized already: leave load_in_8bit and load_in_4bit out to open it."
            )
    if not asked and own is None:
        return {}
    _require("bitsandbytes", "quantized", f"{options.pretrained} in 8 or 4 bits")
    # Of each product it tells that what enters is rounded to float16, which is what LLM.int8 does.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if own is not None:
        return {}
    from transformers import BitsAndBytesConfig

    if options.load_in_8bit:
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    made = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=_dtype(options, config)
    )
    return {"quantization_config": made}


def _dtype(options: Options, config: Mapping[str, Any]) -> torch.dtype:
    """Return the type that the weights have which stay as they are."""
    if isinstance(options.torch_dtype, torch.dtype):
        return options.torch_dtype
    named = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return parse_dtype(named) if named in DTYPES else torch.float32


def add_adapter(model: nn.Module, options: Options) -> None:
    """Put the LoRA that the options name beside the weights of a model, in place and not merged.

    Parameters
    ----------
    model
        A transformers model, in evaluation mode.
    options
        The adapter's options; ``peft`` is a folder or a Hub id.

    Raises
    ------
    ValueError
        If it is no LoRA that adds to weights; if the model has no place for some of its weights, or it has none for
        some places; without PEFT.
    """
    name = str(options.peft)
    _require("peft", "lora", f"peft={name}")
    from peft import PeftConfig, PeftModel, load_peft_weights, set_peft_model_state_dict

    try:
        config = PeftConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"no adapter at peft={name!r}: it is neither a folder with an adapter_config.json nor reachable on the Hub "
            f"({reason})"
        ) from error
    kind = str(config.peft_type).rpartition(".")[2]
    if kind != "LORA":
        raise ValueError(f"peft={name} is of type {kind}: of PEFT's adapters LoRA is tested.")
    for setting, what in _ODD.items():
        if getattr(config, setting, None):
            raise ValueError(f"peft={name} sets {setting}: {what}, and only what adds to weights is tested.")
    _warn_of_base(str(config.base_model_name_or_path or ""), options)
    config.inference_mode = True
    try:
        wrapped = PeftModel(model, config, adapter_name=_NAME)
    except ValueError as error:
        raise ValueError(f"peft={name} does not fit {options.pretrained}: {error}") from error
    device = next(model.parameters()).device
    stored = load_peft_weights(name, device=str(device))
    try:
        found: Any = set_peft_model_state_dict(wrapped, stored, adapter_name=_NAME)
    except RuntimeError as error:  # of another shape
        raise ValueError(f"peft={name} does not fit {options.pretrained}: {error}") from error
    # PEFT goes on, with a warning or without: the model would be another one than was trained.
    missing = [key for key in found.missing_keys if _NAME in key.split(".")]
    for what, keys in (("has no weights for", missing), ("has weights without a place,", found.unexpected_keys)):
        if keys:
            raise ValueError(
                f"peft={name} does not fit {options.pretrained}: it {what} {keys[0]} and {len(keys) - 1} others."
            )
    model.eval()


def _warn_of_base(base: str, options: Options) -> None:
    """Warn if an adapter was trained on a checkpoint of another name: nothing else may tell that it is another."""
    if base and os.path.basename(base.rstrip("/")) != os.path.basename(options.pretrained.rstrip("/")):
        warnings.warn(
            f"peft={options.peft} was trained on {base}, and is put on {options.pretrained}: answers mean something "
            "only if these are the same weights.",
            stacklevel=2,
        )


def refuse_adapters_inside(options: Options) -> None:
    """Refuse a checkpoint's folder that holds an adapter, which transformers loads by itself and unchecked.

    Raises
    ------
    ValueError
        If it does.
    """
    file = Path(options.pretrained) / "adapter_config.json"
    if file.is_file():
        base = json.loads(file.read_text()).get("base_model_name_or_path") or "BASE"
        raise ValueError(
            f"pretrained={options.pretrained} holds an adapter of PEFT: name the checkpoint that it was trained on "
            f"and the adapter, as in pretrained={base},peft={options.pretrained}."
        )


def described(model: Any) -> str:
    """Return what is to be said of a model's weights, empty for those of a checkpoint as they are."""
    parts = []
    if (number := bits(model)) is not None:
        parts.append(f"linear layers in {number} bits (bitsandbytes {installed('bitsandbytes')})")
    if (more := added_share(model)) is not None:
        parts.append(
            f"LoRA beside the weights (peft {installed('peft')}), which makes {100 * more:.2g} % more multiply-adds a "
            "token in the decoder's linear layers than the costs say, those of merged weights"
        )
    return "; ".join(parts)


def told_of(model: Any) -> dict[str, str]:
    """Return what the environment of results says of a model's weights: the sentence, and versions of packages."""
    used = [*(["bitsandbytes"] if bits(model) is not None else []), *(["peft"] if _is_adapted(model) else [])]
    return {"weights": described(model), **{name: installed(name) for name in used}} if used else {}


def added_share(model: nn.Module) -> float | None:
    """Return the multiply-adds of adapters as a share of those of the decoder's linear layers; None without adapters.

    Of one token and of the weights' products alone, without attention's and the head's.
    """
    linear = {
        name: module.in_features * module.out_features
        for layer in find_anatomy(model).layers
        for name, module in layer.named_modules(prefix=str(id(layer)))
        if isinstance(module, nn.Linear)
    }
    own = sum(number for name, number in linear.items() if "lora_" not in name)
    added = sum(linear.values()) - own
    return added / own if _is_adapted(model) else None


def _is_adapted(model: nn.Module) -> bool:
    return any(name.rpartition(".")[2] == "lora_A" for name, _ in model.named_modules())


def packages(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the packages beside torch and transformers that decide what a model with these arguments answers.

    Parameters
    ----------
    arguments
        Options of an adapter by name.
    """
    yes = ("1", "on", "t", "true", "y", "yes")  # as options read it
    quantized = any(str(arguments.get(name)).lower() in yes for name in ("load_in_8bit", "load_in_4bit"))
    adapted = arguments.get("peft") not in (None, "None", "none")
    return (*(("bitsandbytes",) if quantized else ()), *(("peft",) if adapted else ()))


def _require(package: str, extra: str, what: str) -> None:
    if installed(package) == UNINSTALLED:
        raise ValueError(f"{what} needs {package}, which is not installed: pip install 'vtw-eval[{extra}]'.")
