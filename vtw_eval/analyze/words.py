"""What the numbers say about attention sinks, migration and DyVTE's stages, in Markdown.

Every sentence is chosen by a rule that stands beside it, so that it holds for other checkpoints, too; where a rule
disagrees with a paper, the text says so.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vtw_eval.analyze.analysis import Agreement, Attention, TaskAnalysis
from vtw_eval.analyze.documents import Array
from vtw_eval.analyze.roles import (
    CROSS,
    FIRST,
    INSTRUCTION,
    OUTPUT,
    ROLES,
    SYSTEM,
    TEXT_SELF,
    VISION,
)
from vtw_eval.report.drawing import Plot
from vtw_eval.report.labels import params_of
from vtw_eval.tables import Table, markdown

NAME = "README.md"
"""Of the file."""

SINK = 0.5
"""Share of the attention above which the system tokens are called a sink: the paper has 0.8 or more."""
SCARCE = 0.1
"""Share below which vision tokens are said to get little: the paper has 0.05."""
SAME = 0.99
"""Share of answers from which on they are said to stay the same."""
FALL = 0.8
"""Attention from text to image falls if it gets below so much of what it was, and resumes if its lowest is below so
much of what comes later."""
NEAR = 0.05
"""Relative difference of entropies below which they are called the same."""


def reading(tasks: Sequence[TaskAnalysis], model: str, plots: Sequence[Plot], command: str = "") -> str:
    """Return the text with its tables and figures.

    Parameters
    ----------
    tasks
        What was read.
    model
        Name of the checkpoint.
    plots
        The figures, which stand beside the text.
    command
        What has made it.
    """
    by_name = {plot.image.name: plot.image for plot in plots}

    def figure(name: str) -> str:
        return f"![{by_name[name].alt}]({name}.svg)"

    tokens, predicted = (
        sum(getattr(one, name) for task in tasks for one in task.attention) for name in ("tokens", "predicted")
    )
    parts = [
        f"# Attention of {model}",
        f"{_documents(tasks)}; {tasks[0].layers} decoder layers, counted from 0. Attention of the tokens that answer "
        "(the prompt's last token, and each generated one but the last), computed from queries and keys, mean over "
        f"heads. The passes over prompt and answer give {predicted} of {tokens} tokens of the answers the highest "
        "probability. "
        "What each number means, and where the papers leave it open: docs/analyze.md. Every number: "
        "[attention.csv](attention.csv), [kinds.csv](kinds.csv), [entropy.csv](entropy.csv), "
        "[agreement.csv](agreement.csv).",
        markdown(_counts(tasks)),
        "## Attention sink",
        _sink(tasks),
        markdown(_shares(tasks)),
        figure("attention-by-layer"),
        "## Migration",
        _migration(tasks),
        markdown(_answers(tasks)),
        figure("attention-by-token"),
        figure("agreement"),
        "## Three stages",
        _stages(tasks),
        figure("kinds"),
        figure("entropy"),
        *([f"Made by `{command}`."] if command else []),
    ]
    return "\n\n".join(parts) + "\n"


def _documents(tasks: Sequence[TaskAnalysis]) -> str:
    return "; ".join(f"{task.task or 'given questions'}: {task.documents} documents" for task in tasks)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _thirds(layers: int) -> dict[str, range]:
    """Return first, middle and last layers."""
    one, two = round(layers / 3), round(2 * layers / 3)
    return {"first": range(one), "middle": range(one, two), "last": range(two, layers)}


def _span(layers: range) -> str:
    return f"layers {layers[0]} to {layers[-1]}" if len(layers) > 1 else f"layer {layers[0]}"


def _mean_by_layer(tasks: Sequence[TaskAnalysis]) -> Array:
    """Return shares of the unchanged model by layer and role, mean over tasks."""
    return np.mean([task.unchanged.by_layer.mean for task in tasks], axis=0)


def _counts(tasks: Sequence[TaskAnalysis]) -> Table[str]:
    rows = [
        [
            task.task,
            *(f"{count:.1f}" for count in task.unchanged.counts),
            f"{task.unchanged.tokens / task.documents:.1f}",
        ]
        for task in tasks
    ]
    return Table(["tokens", *ROLES[:OUTPUT], "output seen", "answer"], rows)


def _shares(tasks: Sequence[TaskAnalysis]) -> Table[str]:
    """Return shares by role in each third of the layers."""
    rows = []
    for task in tasks:
        for name, layers in _thirds(task.layers).items():
            values = task.unchanged.by_layer.mean[list(layers)].mean(axis=0)
            rows.append([task.task, f"{name}: {_span(layers)}", *(_percent(value) for value in values)])
    return Table(["task", "layers", *ROLES, FIRST], rows, words=2)


def _sink(tasks: Sequence[TaskAnalysis]) -> str:
    shares = _mean_by_layer(tasks)
    last = list(_thirds(len(shares))["last"])
    late = shares[last].mean(axis=0)
    counts = np.mean([task.unchanged.counts for task in tasks], axis=0)
    peak = int(shares[:, SYSTEM].argmax())
    first_peak = int(shares[:, -1].argmax())
    enrichment = (late[SYSTEM] / counts[SYSTEM]) / (late[VISION] / counts[VISION]) if counts[SYSTEM] else float("nan")
    agrees = late[SYSTEM] >= SINK
    fades = late[VISION] < SCARCE
    verdict = (
        "That is the sink of the paper."
        if agrees and fades
        else "System tokens are a sink as in the paper, but vision tokens keep a part that is not small."
        if agrees
        else f"That is not what the paper saw: no majority goes to the system tokens, and vision tokens get "
        f"{_percent(late[VISION])}."
    )
    return (
        f"VTW (Fig. 4, LLaVA-1.5-7B) has 80 % or more of the attention on 35 system tokens in middle and deep layers, "
        f"and 5 % on 576 vision tokens. Here, in {_span(range(last[0], last[-1] + 1))}, mean over the tasks: system "
        f"{_percent(late[SYSTEM])} ({counts[SYSTEM]:.0f} tokens), vision {_percent(late[VISION])} "
        f"({counts[VISION]:.0f} tokens), instruction {_percent(late[INSTRUCTION])}, output {_percent(late[OUTPUT])}. "
        f"{verdict} System tokens get most in layer {peak} ({_percent(shares[peak, SYSTEM])}), the first token of the "
        f"prompt in layer {first_peak} ({_percent(shares[first_peak, -1])}). Token by token a system token gets "
        f"{enrichment:.1f} times what a vision token gets in the last layers."
    )


def _first_same(task: TaskAnalysis) -> Agreement | None:
    """Return the smallest k from which on the answers stay the same at every larger one."""
    found = None
    for one in reversed(task.agreement):
        if one.share < SAME:
            break
        found = one
    return found


def _migration(tasks: Sequence[TaskAnalysis]) -> str:
    shares = _mean_by_layer(tasks)
    thirds = [shares[list(layers), VISION].mean() for layers in _thirds(len(shares)).values()]
    fades = thirds[2] < FALL * thirds[0]
    told = (
        f"Attention to vision tokens fades with depth, as in VTW: {_percent(thirds[0])} in the first third of the "
        f"layers, {_percent(thirds[2])} in the last."
        if fades
        else f"Attention to vision tokens does not fade with depth, unlike in VTW: {_percent(thirds[0])} in the first "
        f"third of the layers, {_percent(thirds[1])} in the middle, {_percent(thirds[2])} in the last."
    )
    return " ".join([told, *_by_token(tasks), *(_kept(task) for task in tasks)])


def _by_token(tasks: Sequence[TaskAnalysis]) -> list[str]:
    """Tell how attention moves along the longest answers (VTW Fig. 5)."""
    task = max(tasks, key=lambda one: one.unchanged.tokens / one.documents)
    values = task.unchanged.by_token
    enough = values.documents[:, 0] * 2 >= task.documents
    count = int(enough.sum())
    if count < 3:
        return []
    before, after = values.mean[0], values.mean[count - 1]
    falls = after[VISION] < before[VISION] and after[OUTPUT] > before[OUTPUT]
    return [
        f"Along the answers of {task.task}, from token 1 to {count}, vision goes from {_percent(before[VISION])} to "
        f"{_percent(after[VISION])} and output from {_percent(before[OUTPUT])} to {_percent(after[OUTPUT])}"
        + (", as in VTW's Fig. 5." if falls else ", which is not VTW's Fig. 5.")
    ]


def _kept(task: TaskAnalysis) -> str:
    """Tell from which k on answers stay the same, and what attention vision tokens get from there on."""
    first = _first_same(task)
    if first is None:
        best = task.agreement[-1]
        return (
            f"On {task.task} answers do not stay the same at any k that was run: at k={best.k} "
            f"{_percent(best.share)} of them do."
        )
    later = task.unchanged.by_layer.mean[first.k :, VISION]
    unused = (
        f"; from layer {first.k} on the unchanged model gives vision tokens {_percent(float(later.mean()))} of its "
        "attention all the same, so that attention is no measure of use"
        if float(later.mean()) >= SCARCE
        else f"; vision tokens get {_percent(float(later.mean()))} of the attention from there on"
    )
    return f"On {task.task} {_percent(SAME)} of the answers or more stay the same from k={first.k} on{unused}."


def _answers(tasks: Sequence[TaskAnalysis]) -> Table[str]:
    ks = sorted({one.k for task in tasks for one in task.agreement})
    rows = []
    for k in ks:
        row = [str(k)]
        for task in tasks:
            one = next(each for each in task.agreement if each.k == k)
            kl = "-" if one.divergence is None else f"{one.divergence:.2e}"
            row += [f"{_percent(one.share)} [{100 * one.low:.1f}, {100 * one.high:.1f}]", kl]
        rows.append(row)
    headers = ["k"]
    for task in tasks:
        headers += [f"same answers, {task.task}", "KL (nats)"]
    return Table(headers, rows)


def _stages(tasks: Sequence[TaskAnalysis]) -> str:
    return " ".join(
        [
            "DyVTE (Fig. 3) reads three stages: attention from text to image is high in the first layers, falls while "
            "tokens of one modality attend to each other, and resumes. What follows is the part of the attention of "
            "the prompt's text that goes to the image, by layer.",
            *(_stages_of(task) for task in tasks),
            *_entropies(tasks),
        ]
    )


def _stages_of(task: TaskAnalysis) -> str:
    """Tell whether attention from text to image falls and resumes on a task."""
    cross = task.unchanged.kinds["mass"].mean[:, CROSS]
    lowest = int(cross[1:].argmin()) + 1
    early, late = cross[:lowest].max(), cross[lowest:].max()
    falls, resumes = cross[lowest] < FALL * early, late > cross[lowest] / FALL
    fall = f"On {task.task} it falls from {_percent(early)} to {_percent(cross[lowest])} in layer {lowest}"
    if falls and resumes:
        return f"{fall} and resumes to {_percent(late)}, as the three stages have it."
    if falls:
        return f"{fall} and does not resume ({_percent(late)} at most): the first two stages, without the third."
    return (
        f"On {task.task} it stays between {_percent(cross.min())} (layer {int(cross.argmin())}) and "
        f"{_percent(cross.max())} (layer {int(cross.argmax())}): no stages can be told apart."
    )


def _entropies(tasks: Sequence[TaskAnalysis]) -> list[str]:
    """Compare the entropy of text self-attention with and without withdrawal, where it was withdrawn."""
    found = []
    names = list(dict.fromkeys(one.method for task in tasks for one in task.attention[1:]))
    for name in names:
        pairs: list[tuple[Array, Array]] = []
        for task in tasks:
            one = next(each for each in task.attention if each.method == name)
            gone = _gone(one)
            if gone.any():
                pairs.append((task.unchanged.kinds["entropy"].mean[gone, TEXT_SELF], _text(one)[gone]))
        if not pairs:
            continue
        before, after = (np.concatenate(each) for each in zip(*pairs, strict=True))
        relative = float(np.abs(after - before).mean() / before.mean())
        verdict = "the same, as in DyVTE's Fig. 5" if relative < NEAR else "not the same, unlike DyVTE's Fig. 5"
        found.append(
            f"Without vision tokens ({name}) the entropy of attention among text tokens is {after.mean():.2f} nats in "
            f"the layers that lack them, {before.mean():.2f} in the unchanged model, {_percent(relative)} apart by "
            f"layer on average: {verdict}.{_all_the_same(name, tasks) if relative < NEAR else ''}"
        )
    return found


def _all_the_same(method: str, tasks: Sequence[TaskAnalysis]) -> str:
    """Tell which answers change under VTW although the entropy does not."""
    k = params_of(method).get("k") if method.partition(",")[0] == "vtw" else None
    at_k = [(one.share, task.task) for task in tasks for one in task.agreement if one.k == k]
    share, task = min(at_k, default=(1.0, ""))
    if share >= SAME:
        return ""
    return (
        f" Yet {_percent(1 - share)} of the answers of {task} are others at this k: an entropy that stays the same "
        "does not show that the image is no longer needed."
    )


def _text(one: Attention) -> Array:
    return one.kinds["entropy"].mean[:, TEXT_SELF]


def _gone(one: Attention) -> Array:
    """Return in which layers no text attends to an image."""
    return np.isnan(one.kinds["mass"].mean[:, CROSS])
