"""Opening a checkpoint, after checking that it is one the adapter knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers

from vtw_eval.anatomy import find_anatomy
from vtw_eval.checkpoints import checkpoint
from vtw_eval.families import DECODER_TESTED, REFUSED
from vtw_eval.models.adapters import ADAPTERS, Adapter
from vtw_eval.models.family import Family
from vtw_eval.models.options import Options
from vtw_eval.models.weights import add_adapter, quantization, refuse_adapters_inside
from vtw_eval.verify.attentions import check_attention


class NoCheckpointError(ValueError):
    """There is no checkpoint of a name, as far as can be seen from here."""


def load(
    adapter: str,
    options: Options,
    *,
    simple: bool,
    device: torch.device,
    adapters: Mapping[str, Adapter] = ADAPTERS,
) -> Family[Any]:
    """Open the checkpoint that the options name, in evaluation mode.

    Parameters
    ----------
    adapter
        A key of ``adapters``.
    options
        The adapter's options.
    simple
        Whether prompts will follow the simple protocol.
    device
        Where the model goes, unless the options name a device map.
    adapters
        The adapters by name.

    Raises
    ------
    ValueError
        See :func:`family_of`; also if the costs of the checkpoint's decoder cannot be told.
    """
    config = _read_config(options)
    family, model_type = _family_in(config, adapter, options, adapters)
    opened = checkpoint(options.pretrained)
    source = {"revision": options.revision, "trust_remote_code": options.trust_remote_code}
    quantized = quantization(options, config)
    bytewise = bool(quantized) or "quantization_config" in config
    # Quantized weights are made where they stay.
    where: Any = options.device_map or ({"": device} if bytewise else None)
    placement = {"device_map": where} if where else {}
    if options.attn_implementation:
        check_attention(options.attn_implementation, device)
    attention = {"attn_implementation": options.attn_implementation} if options.attn_implementation else {}
    model = getattr(transformers, family.auto_class).from_pretrained(
        opened, dtype=options.torch_dtype, **source, **placement, **attention, **quantized
    )
    _check_costs(model, options.pretrained)
    if not where:
        model.to(device)
    model.eval()
    if options.peft is not None:
        add_adapter(model, options)
    processor = getattr(transformers, family.processor_class).from_pretrained(
        opened, **source, **family.processor_arguments(options, model_type, simple)
    )
    return family(model, processor, options, simple)


def _check_costs(model: Any, pretrained: str) -> None:
    """Refuse a decoder whose costs, which every answer comes with, would be wrong."""
    anatomy = find_anatomy(model)
    if not anatomy.plain_cache:
        raise ValueError(
            f"{pretrained} has decoder layers without keys of their own. An adapter tells what a prompt costs by Eq. 1 "
            "and the KV cache, which are of attention in every layer: use methods in Python on this model."
        )


def family_of(
    adapter: str, options: Options, adapters: Mapping[str, Adapter] = ADAPTERS
) -> tuple[type[Family[Any]], str]:
    """Return the family of the checkpoint that the options name, and its ``config.model_type``; loads no weights.

    Parameters
    ----------
    adapter, options, adapters
        See :func:`load`.

    Raises
    ------
    NoCheckpointError
        If there is no such checkpoint, or it cannot be reached.
    ValueError
        If it belongs to another family, or if it brings code that was not asked for.
    """
    return _family_in(_read_config(options), adapter, options, adapters)


def _family_in(
    config: Mapping[str, Any], adapter: str, options: Options, adapters: Mapping[str, Adapter]
) -> tuple[type[Family[Any]], str]:
    model_type = str(config.get("model_type"))
    family = adapters[adapter].family_of(model_type)
    if family is None:
        raise ValueError(_wrong_family(adapter, options.pretrained, config, adapters))
    if family.auto_class == "AutoModel" and not options.trust_remote_code:
        raise ValueError(
            f"{options.pretrained} brings its own code (model type {model_type}): add trust_remote_code=True to run "
            f"it, or use a checkpoint in transformers format."
        )
    return family, model_type


def find_adapter(pretrained: str, revision: str = "main", adapters: Mapping[str, Adapter] = ADAPTERS) -> str:
    """Return the name of the adapter that opens a checkpoint; loads no weights.

    Parameters
    ----------
    pretrained, revision
        The checkpoint.
    adapters
        See :func:`load`.

    Raises
    ------
    NoCheckpointError
        If there is no such checkpoint, or it cannot be reached.
    ValueError
        If none opens it.
    """
    model_type = str(_read_config(Options(pretrained=pretrained, revision=revision)).get("model_type"))
    found = next((name for name, adapter in adapters.items() if adapter.family_of(model_type)), None)
    if found is None:
        known = ", ".join(sorted(t for one in adapters.values() for family in one.families for t in family.model_types))
        raise ValueError(
            f"{pretrained} is a checkpoint of type {model_type!r}, but {known} can be opened.{_refusal(model_type)}"
        )
    return found


def _read_config(options: Options) -> dict[str, Any]:
    refuse_adapters_inside(options)
    try:
        config, _ = transformers.PreTrainedConfig.get_config_dict(
            checkpoint(options.pretrained), revision=options.revision
        )
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise NoCheckpointError(
            f"no checkpoint at pretrained={options.pretrained!r}: it is neither a folder with a config.json nor "
            f"reachable on the Hub ({reason})"
        ) from error
    return config


def _refusal(model_type: str) -> str:
    return f" It is not supported: {REFUSED[model_type]}." if model_type in REFUSED else ""


def _wrong_family(adapter: str, pretrained: str, config: Mapping[str, Any], adapters: Mapping[str, Adapter]) -> str:
    model_type = str(config.get("model_type"))
    known = ", ".join(sorted(t for family in adapters[adapter].families for t in family.model_types))
    better = next((name for name, other in adapters.items() if other.family_of(model_type)), None)
    advice = f" Use --model {better} for it." if better else ""
    if model_type in REFUSED:
        advice = _refusal(model_type)
    elif model_type in DECODER_TESTED:
        advice = " No adapter opens it: use methods in Python on it."
    elif not better and "auto_map" in config:
        advice = " It runs code of its own, which is known for internvl_chat only: take one in transformers' format."
    return f"{pretrained} is a checkpoint of type {model_type!r}, but {adapter} opens {known}.{advice}"
