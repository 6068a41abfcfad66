"""Whether numbers can be believed: costs that show that no method acted, results of other code or without a check."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from vtw_eval.methods import parse_method
from vtw_eval.methods.composite import parts_of
from vtw_eval.report.results import Result
from vtw_eval.versions import engine_hash

BASELINE = "baseline"

DOCUMENT_NOTES = ("media", "guessed")
"""Entries of a cell's environment that tell of single documents, such as pictures that the model was shown otherwise
than a viewer shows them; written by :mod:`vtw_eval.sweep`."""


def withheld_flops(
    flops: Mapping[str, float | None], results: Mapping[str, Iterable[Result]], names: Mapping[str, str]
) -> str:
    """Return why FLOPs cannot be believed, empty if they can.

    They cannot if no method costs anything else than the unchanged model although some should: then none has acted, or
    the trace is of something else than the prompt.

    Parameters
    ----------
    flops
        By method.
    results
        The cells of each method.
    names
        Of methods that have one.
    """
    base = flops.get(BASELINE)
    others = {method: value for method, value in flops.items() if method != BASELINE and value is not None}
    if base is None or any(value != base for value in others.values()):
        return ""
    idle = [names.get(m, m) for m in others if any(_should_act(m, r.layers) for r in results[m] if r.state == "done")]
    if not idle:
        return ""
    return (
        f"No FLOPs are shown: {', '.join(idle)} should cost less than the unchanged model, but no method of this table "
        "does. Either no method has acted or the traces are wrong, so the scores cannot be trusted either."
    )


def _should_act(method: str, layers: int) -> bool:
    """Whether a method removes anything from a prompt with an image; ``layers`` is 0 where nobody knows."""
    try:
        parts = parts_of(parse_method(method))
        return any(getattr(p, "r", 1) != 0 and (not layers or len(p.layers(layers)) > 0) for p in parts)
    except (ValueError, AssertionError):  # of another version, or with a parameter that depends on the model
        return True


def sharing_note(results: Iterable[Result]) -> str:
    """Return what to know of the time of answers that were made together; empty if none were.

    Parameters
    ----------
    results
        The cells of a table.
    """
    done = [result for result in results if result.state == "done"]
    shared = sum("sharing" in result.environment for result in done)
    if not shared:
        return ""
    which = "all" if shared == len(done) else f"{shared} of {len(done)}"
    return (
        f"In {which} cells answers shared passes over their images: they have no latency of their own, so none is "
        "shown (vtw-eval bench measures it), and sharing shrinks the visible speed-up of every pruning method, as in "
        "serving systems with a prefix cache. FLOPs are those of each prompt alone."
    )


def origin_notes(results: Sequence[Result]) -> list[str]:
    """Return a line for each reason to be careful with where results come from."""
    done = [result for result in results if result.state == "done"]
    notes = []
    engines = {result.environment.get("engine", "") for result in done} - {engine_hash()}
    if engines:
        names = ", ".join(sorted(engine or "not recorded" for engine in engines))
        notes.append(
            f"Some cells were made by another version of the engine ({names}) than the one that makes this report "
            f"({engine_hash()}): run the sweep anew in an empty folder before comparing them with new ones."
        )
    unverified = [result for result in done if not result.environment.get("methods", "").startswith("verified")]
    if unverified:
        reasons = sorted({result.environment.get("methods", "not verified (not recorded)") for result in unverified})
        notes.append(
            f"{len(unverified)} of {len(done)} cells were not compared with masked attention on the packages that made "
            f"them: {'; '.join(reasons)}."
        )
    return notes


def document_notes(results: Sequence[Result]) -> list[str]:
    """Return a line for each thing that cells note of their documents, with the cells that do.

    Where all methods of a task note the same, as they do of its pictures, that is one line.
    """
    found: dict[tuple[str, str, str], list[str]] = {}
    methods: dict[tuple[str, str], list[str]] = {}
    for result in results:
        if result.state != "done":
            continue
        spec = result.spec
        methods.setdefault((spec.model, spec.task), []).append(spec.method)
        for name in DOCUMENT_NOTES:
            if text := result.environment.get(name):
                found.setdefault((spec.model, spec.task, text), []).append(spec.method)
    return [
        f"Noted of documents, {model} / {task}"
        f"{'' if own == methods[model, task] else f' ({len(own)} of {len(methods[model, task])} methods)'}: {text}."
        for (model, task, text), own in found.items()
    ]
