"""Options of the adapters: what may stand in ``--model_args``, checked before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError

from vtw_eval.errors import suggest
from vtw_eval.media import Media
from vtw_eval.methods import Method, make_method
from vtw_eval.methods.registry import parameters
from vtw_eval.runtime import DTYPES, parse_dtype

AnyOptions = TypeVar("AnyOptions", bound="Options")

Shown = Literal["given", "blank"]
"""Whether prompts show their own pictures, or white ones."""

Sharing = Literal["auto", "off"]
"""Whether prompts about the same images share what they have in common."""

Prefetch = Literal["auto", "on", "off"]
"""Whether documents are made ready in a thread while the model runs."""


_QUOTED = re.compile(r"""\{.*?\}|\[.*?\]|"[^"]*"|'[^']*'""")
"""What lmms-eval does not split at commas."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options that all adapters share; named as in lmms-eval's own adapters, so that ``--model_args`` carry over.

    Parameters
    ----------
    pretrained
        Folder or Hub id of the checkpoint; "shapes" is the embedded one.
    method
        Key of a method of :mod:`vtw_eval.methods`. Every ``--model_args`` entry that is not an option of the adapter
        is a parameter of the method.
    revision
        Branch, tag or commit on the Hub.
    device
        Where to run. ``None``: the first GPU if there is one, else the CPU; in a data-parallel run the process's own.
    device_map
        Passed to ``from_pretrained``, for instance "auto" to spread a model over several GPUs.
    dtype
        "auto" (what the checkpoint was saved in) or the name of a torch dtype. Half-precision checkpoints are slow on
        most CPUs: use ``dtype=float32`` there.
    attn_implementation
        "sdpa", "eager", "flash_attention_2", ...; ``None``: what transformers prefers.
    load_in_8bit, load_in_4bit
        Keep the weights of linear layers in so many bits (bitsandbytes: LLM.int8, NF4); one of them. Answers then
        depend on rounding as in half precision, and costs count the same products.
    peft
        Folder or Hub id of a LoRA for the checkpoint, which stays beside the weights; costs are those of merged ones.
    trust_remote_code
        Run code that comes with the checkpoint.
    use_cache
        Decode with a KV cache.
    batch_size
        Documents per forward; halved when memory runs out.
    media
        How pictures and videos are read. "harness": as the harness's own adapter reads them, so that answers compare
        with its own; where that is not what a viewer shows (a picture lies on its side, say), the document is counted
        and named. "upright": as a viewer shows them.
    image
        "given": the document's own pictures. "blank": white ones of the same sizes, which go through the processor as
        any other, as in Table 1 of the VTW paper; each answer says so. Videos are refused then.
    sharing
        "auto": what prompts that show the same have in common is computed once for all of them, where that changes no
        answer; such answers have no latency of their own. In half precision it rounds otherwise, as batches do, and
        is left out at ``batch_size=1``. "off": each prompt is computed for itself.
    prefetch
        "on": a thread opens and encodes the next two batches while the model runs; answers are the same. "off": batch
        by batch. "auto": on for a model on a GPU, where the CPU has nothing else to do; not for one on the CPU, which
        both would share.
    verify
        Before the first answer, compare the method on a tiny model of the same architecture with masked attention,
        unless that was done before with the installed packages (:func:`vtw_eval.verify.verdict.verify`). ``False``
        stands in the results.
    """

    pretrained: str
    method: str = "vtw"
    revision: str = "main"
    device: str | None = None
    device_map: str | None = None
    dtype: str = "auto"
    attn_implementation: str | None = None
    load_in_8bit: bool = False
    load_in_4bit: bool = False
    peft: str | None = None
    trust_remote_code: bool = False
    use_cache: bool = True
    batch_size: int = 1
    media: Media = "harness"
    image: Shown = "given"
    sharing: Sharing = "auto"
    prefetch: Prefetch = "auto"
    verify: bool = True

    def __post_init__(self) -> None:
        if self.dtype not in ("auto", *DTYPES):
            raise ValueError(
                f"dtype={self.dtype!r} is unknown{suggest(self.dtype, DTYPES)} Valid: auto, {', '.join(DTYPES)}."
            )
        if self.load_in_8bit and self.load_in_4bit:
            raise ValueError("load_in_8bit=True and load_in_4bit=True exclude each other: give one of them.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} is out of range: it must be 1 or more.")

    @property
    def torch_dtype(self) -> torch.dtype | str:
        """The dtype for ``from_pretrained``."""
        return "auto" if self.dtype == "auto" else parse_dtype(self.dtype)


def parse_options(adapter: str, cls: type[AnyOptions], given: Mapping[str, Any]) -> tuple[AnyOptions, Method]:
    """Split arguments into an adapter's options and the parameters of the method, and check both.

    Parameters
    ----------
    adapter
        Name of the adapter, for messages.
    cls
        Type of its options.
    given
        Arguments by name, as a harness parsed them; the string "None" stands for no value.

    Raises
    ------
    ValueError
        For an unknown name or a bad value. The message lists the valid ones and names the closest.
    """
    values = {name: None if value in ("None", "none") else value for name, value in given.items()}
    hints = get_type_hints(cls)
    names = [f.name for f in fields(cls)]
    options = cls(**{name: _convert(adapter, name, values[name], hints[name]) for name in names if name in values})
    params = {name: value for name, value in values.items() if name not in names}
    of_method = _parameters(options.method)
    for name in params:
        if of_method is not None and name not in of_method:
            raise ValueError(
                f"unknown option {name!r} of {adapter}{suggest(name, names + of_method)} Options: {', '.join(names)}. "
                f"Parameters of method {options.method!r}: {', '.join(of_method) or 'none'}."
            )
    return options, make_method(options.method, params)


def check_unique_names(text: str) -> None:
    """Raise ``ValueError`` unless each entry of ``name=value,name=value`` has a name of its own.

    Harnesses take the last of several values of a name without a word.

    Parameters
    ----------
    text
        As given to ``--model_args``; commas in quotes or brackets belong to a value.
    """
    names = []
    for entry in (part.strip() for part in _QUOTED.sub("", text).split(",")):
        name, equals, _ = entry.partition("=")
        if entry and not (equals and name.strip()):
            raise ValueError(f"{entry!r} in the model's arguments {text!r} is not of the form name=value.")
        names += [name.strip()] if entry else []
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} stands {names.count(name)} times in the model's arguments {text!r}: once only.")


def _parameters(method: str) -> list[str] | None:
    """Return the names that parameters of a method or composition have; None if there is no such method."""
    try:
        return list(parameters(method))
    except ValueError:  # make_method() tells it
        return None


def _convert(adapter: str, name: str, value: Any, hint: Any) -> Any:
    validator = TypeAdapter(hint)
    # A harness guesses types: pretrained=2024 arrives as an int.
    candidates = [value] if value is None or isinstance(value, str) else [value, str(value)]
    for candidate in candidates:
        try:
            is_text = isinstance(candidate, str)
            return validator.validate_strings(candidate) if is_text else validator.validate_python(candidate)
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
    hint_text = " Memory errors halve the batch by themselves." if name == "batch_size" else ""
    raise ValueError(f"bad value {name}={value!r} of {adapter}: {problem}.{hint_text}")
