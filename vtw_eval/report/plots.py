"""Pictures of a model's table: score versus k, score versus FLOPs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

from vtw_eval.report.analysis import ModelTable, Row
from vtw_eval.report.drawing import Panel, Plot
from vtw_eval.report.labels import Ablation
from vtw_eval.report.panels import LABEL_HEIGHT, Divergence, FlopsPanel, KLPanel, KPanel
from vtw_eval.report.render.blocks import Image
from vtw_eval.report.series import series_of

_LENGTH = 60
"""Characters of a part of a file name: file systems take 255 bytes for a name."""


def slug(text: str) -> str:
    """Return text as part of a file name, without what tells it from other texts; see :func:`picture_name`."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")[:_LENGTH].rstrip("-.") or "model"


def picture_name(model: str, *parts: str) -> str:
    """Return the name of the file of a picture, without suffix.

    Parameters
    ----------
    model
        Name of the model. Where a file name cannot hold it as it is, a hash of it follows, so that no two models
        share a file.
    parts
        What the picture shows of it.
    """
    plain = slug(model)
    return "-".join([plain if plain == model else marked(plain, model), *map(slug, parts)])


def marked(name: str, text: str) -> str:
    """Return a name with six hexadecimal digits that depend on a text, to tell it from an equal name."""
    return f"{name}-{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:6]}"


def apart(images: Sequence[Image]) -> list[Image]:
    """Return pictures under names that differ, on file systems too that do not tell capitals from small letters."""
    names = [image.name.casefold() for image in images]
    return [
        image if names.count(name) == 1 else Image(marked(image.name, image.alt), image.alt)
        for image, name in zip(images, names, strict=True)
    ]


def model_plots(
    table: ModelTable,
    families: Sequence[Ablation],
    divergence: Divergence | None = None,
    budgets: Mapping[str, Sequence[Row]] | None = None,
) -> list[Plot]:
    """Return the pictures of a model.

    Parameters
    ----------
    table
        The model's table.
    families
        Its ablations; those of a number k are drawn.
    divergence
        Results of searches for k, drawn below the scores.
    budgets
        Rows that were set to one cost, by what it is called.
    """
    found: list[Plot] = []
    if table.baseline is not None and table.baseline.flops and sum(_costed(row) for row in table.rows) > 1:
        image = Image(picture_name(table.model, "flops"), f"{table.model}: scores versus FLOPs")
        found.append(_versus_flops(image, table, budgets or {}))
    for family in families:
        ks = [value for value in family.values if isinstance(value, int) and not isinstance(value, bool)]
        if family.parameter.rpartition(".")[2] == "k" and len(ks) > 1 and _scored(table, family.methods):
            image = Image(
                picture_name(table.model, family.name, family.parameter),
                f"{table.model}: scores of {family.name} versus {family.parameter}",
            )
            found.append(_versus_k(image, table, family, divergence or {}))
    return found


def _costed(row: Row) -> bool:
    """Whether a row is a point in a picture of scores versus FLOPs."""
    return row.flops is not None and bool(row.scores)


def _scored(table: ModelTable, methods: Sequence[str]) -> bool:
    """Whether two of the methods or more have a score, so that a line can be drawn."""
    return sum(bool(row.scores) for row in table.rows if row.method in methods) > 1


def _versus_k(image: Image, table: ModelTable, family: Ablation, divergence: Divergence) -> Plot:
    rows = {row.method: row for row in table.rows}
    members = [
        (value, rows[method])
        for value, method in zip(family.values, family.methods, strict=True)
        if isinstance(value, int)
    ]
    titles = [title for title in table.columns if any(title in row.scores for _, row in members)]
    panels: list[Panel] = [KPanel(table, family, title, members) for title in titles]
    if divergence:
        panels.append(KLPanel(divergence))
    return Plot(image, f"{table.model}: {family.name}, 95 % intervals", tuple(panels), columns=3)


def _versus_flops(image: Image, table: ModelTable, budgets: Mapping[str, Sequence[Row]]) -> Plot:
    titles = [title for title in table.columns if any(title in row.scores for row in table.rows if _costed(row))]
    series = series_of(table)
    title = f"{table.model}: scores versus FLOPs, 95 % intervals; the steps join what nothing beats in both"
    # Room for a label of each line and the unchanged model, and its words.
    height = max(2.5, LABEL_HEIGHT * (len(series) + 1))
    panels = tuple(FlopsPanel(table, series, title, budgets, height) for title in titles)
    margin = 0.35 + 0.062 * max((len(one.label) for one in series), default=8)
    return Plot(image, title, panels, columns=2, height=height, margin=margin)
