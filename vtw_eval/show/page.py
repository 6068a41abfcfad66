"""Scenes as one HTML page, and as pictures."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from markupsafe import Markup
from numpy.typing import NDArray

from vtw_eval.cost.units import flops_unit
from vtw_eval.report.render.blocks import Block, Details, Heading, Image, Inline, Paragraph, Text
from vtw_eval.report.render.html import to_html
from vtw_eval.report.render.patches import data_url, drawn, sheet
from vtw_eval.show.answers import Scene, Shown
from vtw_eval.show.overlays import overlays
from vtw_eval.show.sight import Panel
from vtw_eval.show.steps import Step, runs
from vtw_eval.tables import Table

_LEGEND = (
    "Pictures are drawn as the model gets them: resized, cropped, padded, cut into tiles. What is dark has no token "
    "in the layers named; an orange line runs around the rest. Patches of one colour, which groups have in turn, were "
    "merged into one token. In the answers, bold begins where they part from the unchanged model's. FLOPs: Eq. 1 of "
    "the VTW paper on the tokens of this prompt, without the vision tower and what a method computes to choose."
)
_SIDE = 11
"""How many rem the longer side of a picture has."""
_ROW = "display: flex; flex-wrap: wrap; gap: 0.6rem 1.2rem; align-items: flex-start"
_BOX = "display: flex; flex-wrap: wrap; gap: 0.5rem"


def page(scenes: Sequence[Scene], title: str) -> str:
    """Return scenes as one HTML page that needs nothing else.

    Parameters
    ----------
    scenes
        At least one.
    title
        Of the page.
    """
    blocks: list[Block] = [Heading(1, title), Paragraph(_LEGEND)]
    known: set[str] = set()
    for scene in scenes:
        blocks += _scene(scene, known)
    return to_html(blocks)


def pictures(scene: Scene) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield a name and a picture, ``[height, width, 3]``, for each method and each layer at which its tokens change.

    Several images, tiles or frames stand side by side. The unchanged model has the first, with all tokens.
    """
    for shown in scene.shown:
        overs = overlays(scene.sight, shown.steps)
        for step, over in zip(shown.steps, overs, strict=True):
            if not _is_whole(step, scene) or shown is scene.shown[0]:
                parts = [drawn(panel.pixels, each) for panel, each in zip(scene.sight.panels, over, strict=True)]
                yield f"{re.sub(r'[^A-Za-z0-9.=+-]+', '_', shown.method)}-layer{step.first}", sheet(parts)


def _is_whole(step: Step, scene: Scene) -> bool:
    return bool(torch.equal(step.kept, scene.shown[0].steps[0].kept)) and not step.groups


def _scene(scene: Scene, known: set[str]) -> Iterator[Block]:
    """Yield the blocks of a scene; pictures that stand in the page already are known by name."""
    yield Heading(2, " ".join(scene.title.split()))
    names = [_name(panel) for panel in scene.sight.panels]
    new = {name: panel for name, panel in zip(names, scene.sight.panels, strict=True) if name not in known}
    known.update(new)
    first = scene.shown[0]
    alone = len(names) == 1
    seen = [_svg(each, name, None, "all tokens", alone) for each, name in zip(scene.sight.panels, names, strict=True)]
    whole = Markup('<div style="{}">{}</div>').format(_BOX, Markup().join(seen))
    yield Image("seen", f"What the model sees, in {scene.vision} vision tokens.", (("", str(_symbols(new) + whole)),))
    yield Details("The prompt, as text", [Paragraph(Text(scene.prompt, "code"))], open=scene.title not in scene.prompt)
    yield _table(scene)
    for shown in scene.shown[1:]:
        yield Heading(3, shown.method)
        if len(shown.steps) == 1 and _is_whole(shown.steps[0], scene):
            yield Paragraph("All tokens enter every layer.")
            continue
        boxes = Markup().join(
            _step(scene, names, step, over)
            for step, over in zip(shown.steps, overlays(scene.sight, shown.steps), strict=True)
            if not _is_whole(step, scene)
        )
        late = _is_whole(shown.steps[0], scene)
        told = f"Before that, all {first.tokens_per_layer[0]} tokens." if late else "From the first layer on."
        yield Image("kept", told, (("", str(Markup('<div style="{}">{}</div>').format(_ROW, boxes))),))


def _step(scene: Scene, names: Sequence[str], step: Step, over: Sequence[NDArray[np.uint8]]) -> Markup:
    tokens, vision = int(step.kept.sum()), _vision(scene, step)
    words = f"{step.layers}: {vision} of {scene.vision} vision tokens, {tokens} in all"
    if groups := step.groups:
        words += f"; {len(groups)} stand for {sum(int(group.sum()) for group in groups)}"
    parts = Markup().join(
        _svg(panel, name, each, words, len(names) == 1)
        for panel, name, each in zip(scene.sight.panels, names, over, strict=True)
    )
    width = "100%" if len(names) > 1 else f"{_SIDE + 1}rem"
    return Markup('<div style="max-width: {}"><div>{}</div><div style="{}">{}</div></div>').format(
        width, words, _BOX, parts
    )


def _vision(scene: Scene, step: Step) -> int:
    return int((step.kept & scene.sight.tokens).sum())


def _name(panel: Panel) -> str:
    """Return by what the page knows the pixels of a picture."""
    return f"p{hashlib.sha256(panel.pixels.tobytes() + repr(panel.pixels.shape).encode()).hexdigest()[:16]}"


def _symbols(panels: dict[str, Panel]) -> Markup:
    """Return the pictures, hidden, to be used by their names."""
    inside = Markup().join(
        Markup('<image id="{}" width="{}" height="{}" href="{}" style="image-rendering: {}"/>').format(
            name, panel.pixels.shape[1], panel.pixels.shape[0], data_url(panel.pixels), _rendering(panel)
        )
        for name, panel in panels.items()
    )
    hidden = '<svg width="0" height="0" style="position: absolute" aria-hidden="true"><defs>{}</defs></svg>'
    return Markup(hidden).format(inside)


def _svg(panel: Panel, name: str, over: NDArray[np.uint8] | None, words: str, alone: bool) -> Markup:
    """Return a picture of the page with what lies over it; one that is alone needs no name."""
    height, width = panel.pixels.shape[:2]
    above = Markup("")
    caption = Markup("") if alone else Markup("<figcaption>{}</figcaption>").format(panel.name)
    if over is not None and over[..., 3].any():
        above = Markup('<image width="{}" height="{}" href="{}" style="image-rendering: {}"/>').format(
            width, height, data_url(over), _rendering(panel)
        )
    return Markup(
        '<figure style="margin: 0"><svg role="img" aria-label="{0}, {1}" viewBox="0 0 {2} {3}" '
        'style="width: {4}rem; max-width: 100%; height: auto; display: block"><use href="#{5}"/>{6}</svg>'
        "{7}</figure>"
    ).format(panel.name, words, width, height, _rem(width, height), name, above, caption)


def _rem(width: int, height: int) -> float:
    """Return how wide a picture is shown."""
    return round(_SIDE * width / max(width, height), 2)


def _rendering(panel: Panel) -> str:
    return "pixelated" if min(panel.pixels.shape[:2]) < 160 else "auto"


def _table(scene: Scene) -> Table[Inline]:
    first = scene.shown[0]
    unit, name = flops_unit(first.flops)
    rows: list[list[Inline]] = [
        [
            shown.method,
            _answer(first, shown),
            _difference(first, shown) if shown is not first else "",
            runs(shown.tokens_per_layer),
            f"{sum(shown.tokens_per_layer) / len(shown.tokens_per_layer):.1f}",
            f"{shown.flops / unit:.3g}",
            f"{shown.flops / first.flops:.1%}",
        ]
        for shown in scene.shown
    ]
    headers = ["method", "answer", "same as unchanged", "tokens by layer", "mean", f"{name} ↓", "share"]
    return Table(headers, rows, words=4)


def _answer(first: Shown, shown: Shown) -> Inline:
    place = shown.differs_from(first)
    words = shown.answer.split()
    if place is None or place >= len(words):
        return shown.answer or "(nothing)"
    before = " ".join(words[:place])
    return (Text(f"{before} " if before else ""), Text(" ".join(words[place:]), "bold"))


def _difference(first: Shown, shown: Shown) -> str:
    place = shown.differs_from(first)
    return "yes" if place is None else f"no, from word {place + 1} on"
