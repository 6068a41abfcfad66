"""``vtw-eval verify``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from vtw_eval.cli.app import app, user_errors

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

    from vtw_eval.methods import Method

_ALSO = ("vtw,k=0", "vtw,position=rearrange", "vtw,k=search", "fastv+vtw,fastv.k=1")
"""Beside every method with its defaults: what takes other paths through the engine."""


@app.command(
    epilog="Examples: vtw-eval verify --all; vtw-eval verify --model llava-hf/llava-1.5-7b-hf --method vtw,k=16; "
    "vtw-eval verify --family qwen2_vl --attention eager"
)
def verify(
    model: Annotated[
        list[str] | None,
        typer.Option(help="Checkpoint whose config is shrunk: Hub name or folder, or shapes. Repeatable."),
    ] = None,
    family: Annotated[
        list[str] | None, typer.Option(help="Or a family by its config.model_type, such as llava. Repeatable.")
    ] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Every supported family, and what else this project relies on in others.")
    ] = False,
    method: Annotated[
        list[str] | None, typer.Option(help="Method spec, such as vtw,k=16. Repeatable. Default: every method.")
    ] = None,
    attention: Annotated[
        str, typer.Option(help="Attention implementations, by their names in transformers or as OWNER/NAME of the Hub.")
    ] = "sdpa,eager",
) -> None:
    """Compare methods with masked attention on tiny random models, with the packages that are installed.

    For each combination: prefill and cached decoding, padding, several images, with and without a KV cache, and the
    attention weights that a method reads. Evaluations do this by themselves before their first answer and keep the
    verdict; this command always looks anew. With --all it also runs the feature test of each thing that is used here
    though the other package does not promise it (touch_points.py here and with each harness's adapters). Exit status 1
    if anything differs.
    """
    from transformers.utils import logging

    from vtw_eval.versions import environment

    logging.set_verbosity_error()
    with user_errors("verify"):
        configs = _configs(model or [], family or [], all_)
        methods = _methods(method or [])
        devices = _devices(attention.split(","))
    start = time.perf_counter()
    failures = _table(configs, methods, devices)
    versions = ", ".join(f"{name} {value}" for name, value in environment().items())
    total = len(configs) * len(methods) * len(devices)
    typer.echo(
        f"\n{total - len(failures)} of {total} agree with masked attention, {time.perf_counter() - start:.0f} s."
    )
    typer.echo(versions)
    if all_:
        failures += _touch_points()
        _attentions()
    for failure in failures:
        typer.echo(f"vtw-eval verify: {failure}", err=True)
    if failures:
        raise typer.Exit(1)


def _configs(models: Sequence[str], families: Sequence[str], everything: bool) -> dict[str, PreTrainedConfig]:
    """Return the configs that were asked for, by name."""
    from transformers import AutoConfig

    from vtw_eval.checkpoints import checkpoint
    from vtw_eval.errors import suggest
    from vtw_eval.families import DECODER_TESTED, TESTED
    from vtw_eval.verify.tiny import family_config

    everywhere = sorted(TESTED - {"internvl_chat"})  # code that comes with checkpoints cannot be made small
    known = sorted({*everywhere, *DECODER_TESTED})
    for name in families:
        if name not in known:
            raise ValueError(f"unknown family {name!r}{suggest(name, known)} Known: {', '.join(known)}.")
    if not (models or families or everything):
        raise ValueError("name a --model or a --family, or give --all; vtw-eval verify --help shows examples.")
    found = {name: AutoConfig.from_pretrained(checkpoint(name)) for name in models}
    return found | {name: family_config(name) for name in (everywhere if everything else families)}


def _methods(specs: Sequence[str]) -> list[Method]:
    from vtw_eval.methods import METHODS, parse_method

    return [parse_method(spec) for spec in specs or (*METHODS, *_ALSO)]


def _devices(attentions: Sequence[str]) -> dict[str, torch.device]:
    """Return where each attention implementation runs; an error for one that is not served or cannot run here."""
    import torch

    from vtw_eval.verify.attentions import check_attention, needs_gpu, standing

    gpu = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    devices = {name: gpu if needs_gpu(name) else torch.device("cpu") for name in attentions}
    for name, device in devices.items():
        if reason := standing(name, device).refused:
            raise ValueError(f"attn_implementation={name!r} is not served: {reason}.")
        check_attention(name, device)
    return devices


def _attentions() -> None:
    """Print which attention implementations are served, and what those need that cannot run here."""
    import torch

    from vtw_eval.verify.attentions import names, standing

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    typer.echo("attn_implementation:")
    for name in names():
        typer.echo(f"  {name:40}{standing(name, device)}")


def _table(
    configs: dict[str, PreTrainedConfig], methods: Sequence[Method], attentions: Mapping[str, torch.device]
) -> list[str]:
    """Print a line for each model and attention as soon as it is known; return what differs."""
    from vtw_eval.verify.verdict import VerificationError, verify_config

    failures: list[str] = []
    columns = [str(method).removesuffix(",position=keep") for method in methods]
    for number, column in enumerate(columns):
        typer.echo(f"{number + 1:>3}  {column}")
    head = "".join(f"{number + 1:>5}" for number in range(len(columns)))
    typer.echo(f"\n{'':30}{head}")
    for name, config in configs.items():
        for attention, device in attentions.items():
            typer.echo(f"{name:20}{attention:10}", nl=False)
            for method in methods:
                try:
                    verify_config(config, method, attention, device=device, fresh=True)
                    typer.echo("   ok", nl=False)
                except VerificationError as error:
                    failures.append(str(error))
                    typer.echo("   NO", nl=False)
            typer.echo("")
    return failures


def _touch_points() -> list[str]:
    """Run the feature tests of the packages that are installed; print how many pass, return what differs."""
    from vtw_eval.importing import HarnessImportError
    from vtw_eval.sweep.harness import find_harness, harness_names
    from vtw_eval.verify.touch_points import TOUCH_POINTS, check
    from vtw_eval.versions import UNINSTALLED, UpstreamChangedError, installed

    listed = [*TOUCH_POINTS, *(point for name in harness_names() for point in find_harness(name).touch_points())]
    points = [point for point in listed if installed(point.package) != UNINSTALLED]
    failures: list[str] = []
    for point in points:
        try:
            check(point)
        except (HarnessImportError, UpstreamChangedError) as error:
            failures.append(f"{point.package}: {error}")
    packages = ", ".join(f"{name} {installed(name)}" for name in dict.fromkeys(point.package for point in points))
    typer.echo(f"{len(points) - len(failures)} of {len(points)} things that others do not promise are as expected.")
    typer.echo(packages)
    return failures
