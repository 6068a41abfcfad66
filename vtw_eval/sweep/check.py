"""What is hopeless about cells, found out from configs before the first checkpoint is loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from vtw_eval.anatomy import Anatomy, find_anatomy
from vtw_eval.checkpoints import checkpoint, known
from vtw_eval.engine.reads import check_readable
from vtw_eval.methods import DyVTE, Method, parse_method
from vtw_eval.methods.composite import Composite, parts_of
from vtw_eval.models.loading import NoCheckpointError, family_of
from vtw_eval.models.options import Options, parse_options
from vtw_eval.record.cell import CellSpec
from vtw_eval.sweep.harness import Harness, ModelKey, Settings, find_harness

_WEIGHTS = ("*.safetensors", "*.bin")
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Finding:
    """One reason for which cells cannot be evaluated, or could not be looked at."""

    cells: tuple[CellSpec, ...]
    reason: str
    fatal: bool = True

    def __str__(self) -> str:
        first = self.cells[0]
        methods = {cell.method for cell in self.cells}
        which = f"{first.model} / {first.method}" if len(methods) == 1 else first.model
        count = f"{len(self.cells)} cells" if len(self.cells) > 1 else "1 cell"
        return f"{which} ({count}): {self.reason}"


def check_cells(
    cells: Sequence[CellSpec], settings: Settings, *, elsewhere: bool = False, planning: bool = False
) -> list[Finding]:
    """Look at the config of each model, the methods on it and the device.

    Parameters
    ----------
    cells
        Cells of one plan.
    settings
        Device.
    elsewhere
        Whether they run on other machines, which may have other devices and folders.
    planning
        Whether they are only planned, so that a checkpoint of the papers need not be within reach now.

    Returns
    -------
    list of Finding
        One per reason, in the order of the cells.
    """
    found: list[Finding] = []
    if reason := device_problem(settings.device, elsewhere):
        found.append(Finding(tuple(cells), reason))
    models: dict[ModelKey, list[CellSpec]] = {}
    for cell in cells:
        models.setdefault(ModelKey.of(cell), []).append(cell)
    for own in models.values():
        found += _model(own, elsewhere, planning)
    return found


def device_problem(device: str | None, elsewhere: bool = False) -> str:
    """Return why a device cannot be used; empty if it can.

    Parameters
    ----------
    device
        As torch spells it; None is chosen by what there is.
    elsewhere
        Whether it is one of another machine, so that only its spelling can be checked.
    """
    if device is None:
        return ""
    try:
        wanted = torch.device(device)
    except RuntimeError:
        return f"device={device!r} is no device of torch: cpu, cuda, cuda:1, mps, ..."
    if elsewhere or wanted.type == "cpu":
        return ""
    if wanted.type == "cuda":  # asked, not tried: a context would take memory of the GPU
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return "" if (wanted.index or 0) < count else f"device={device!r}: this machine has {count} GPUs for torch."
    try:
        torch.empty(1, device=wanted).cpu()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        return f"device={device!r} does not work here ({_line(error)})."
    return ""


def _model(cells: Sequence[CellSpec], elsewhere: bool, planning: bool) -> list[Finding]:
    """Return what is wrong with one checkpoint and with methods on it."""
    spec = cells[0]
    harness = find_harness(spec.harness)
    adapters = harness.adapters()
    arguments = {**spec.model_args, "pretrained": checkpoint(spec.pretrained), "method": "baseline"}
    options, _ = parse_options(spec.adapter, adapters[spec.adapter].options, arguments)
    try:
        family, _ = family_of(spec.adapter, options, adapters)
        _check_weights(Path(options.pretrained))
    except NoCheckpointError as error:
        unseen = elsewhere or (
            planning and known(spec.pretrained) is not None and not Path(options.pretrained).exists()
        )
        return [Finding(tuple(cells), _line(error), fatal=not unseen)]
    except (ValueError, OSError) as error:
        return [Finding(tuple(cells), _line(error))]
    try:
        anatomy = None if family.auto_class == "AutoModel" else _anatomy(family.auto_class, options)
    except Exception as error:  # whatever transformers says to a config
        return [Finding(tuple(cells), f"{type(error).__name__}: {_line(error)}")]
    found = []
    for method in dict.fromkeys(cell.method for cell in cells):
        own = tuple(cell for cell in cells if cell.method == method)
        if reason := _method(parse_method(method), anatomy, harness):
            found.append(Finding(own, reason))
    return found


def _check_weights(folder: Path) -> None:
    """Raise ``ValueError`` if a local checkpoint has no weights, or lacks some of those that its index names."""
    if not folder.is_dir():
        return
    for index in (folder / name for name in _INDICES if (folder / name).is_file()):
        named = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
        if lost := sorted(name for name in named if not (folder / name).is_file()):
            raise ValueError(f"{folder} lacks {len(lost)} of {len(named)} files of weights, such as {lost[0]}.")
        return
    if not any(file for pattern in _WEIGHTS for file in folder.glob(pattern)):
        raise ValueError(f"{folder} holds a config.json, but no weights ({', '.join(_WEIGHTS)}).")


def _anatomy(auto_class: str, options: Options) -> Anatomy:
    """Return what methods may ask of a model, from its config: the weights have shapes only."""
    config = transformers.AutoConfig.from_pretrained(options.pretrained, revision=options.revision)
    attention = {"attn_implementation": options.attn_implementation} if options.attn_implementation else {}
    with torch.device("meta"):
        model: Any = getattr(transformers, auto_class).from_config(config, **attention)
    return find_anatomy(model)


def _method(method: Method, anatomy: Anatomy | None, harness: Harness) -> str:
    """Return why a method is impossible for a model in a harness; empty if nothing speaks against it."""
    if refusal := harness.refusal(method):
        return refusal
    bound = []
    for part in parts_of(method):
        if isinstance(part, DyVTE) and part.gates is not None and not Path(part.gates).is_file():
            return f"there is no gates file {part.gates!r}: `vtw-eval train-dyvte` makes one."
        if anatomy is None:
            continue
        try:
            bound.append(part.bind(anatomy))
            check_readable(part.reads, anatomy, str(part))
        except ValueError as error:
            return _line(error)
        except (RuntimeError, NotImplementedError):
            bound.append(part)  # what it compares at last needs the weights themselves
    if anatomy is not None and isinstance(method, Composite):
        try:
            replace(method, parts=tuple(bound)).check_order(anatomy.num_layers)
        except ValueError as error:
            return _line(error)
    return ""


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
