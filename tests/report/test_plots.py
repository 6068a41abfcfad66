"""Pictures show what the table holds."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.report.made import make_store
from vtw_eval.methods.vtw.search import SearchResult
from vtw_eval.report import analyse, read_results
from vtw_eval.report.labels import families
from vtw_eval.report.make import ReportRequest, make_report
from vtw_eval.report.plots import apart, model_plots, pareto_front, picture_name, render
from vtw_eval.report.render.blocks import Image
from vtw_eval.report.search import read_divergence, save_divergence


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("higher", [True, False])
def test_the_front_is_what_no_other_point_beats(seed: int, higher: bool) -> None:
    points = [tuple(map(float, p)) for p in np.random.default_rng(seed).integers(0, 6, size=(12, 2))]
    sign = 1 if higher else -1

    def beaten(p: tuple[float, float]) -> bool:
        return any(q != p and q[0] <= p[0] and sign * q[1] >= sign * p[1] for q in points)

    expected = sorted({p for p in points if not beaten(p)})
    assert pareto_front(points, higher_is_better=higher) == expected


def test_pictures_hold_the_values_of_the_table(tmp_path: Path) -> None:
    make_store(tmp_path, ["baseline", "vtw,k=4", "vtw,k=2", "fastv"], models=["a $model$/x"])
    [table] = analyse(read_results(tmp_path))
    plots = model_plots(table, families(row.method for row in table.rows))
    digits = hashlib.sha256(b"a $model$/x").hexdigest()[:6]
    names = [f"a-model-x-{digits}-vtw-position-keep-k", f"a-model-x-{digits}-flops"]
    assert [image.name for image, _ in plots] == names
    versus_k, versus_flops = (figure for _, figure in plots)
    rows = {row.label: row for row in table.rows}
    for axes, title in zip(versus_k.axes, table.columns, strict=True):
        assert axes.lines[0].get_xdata().tolist() == [2, 4]
        shown = axes.lines[0].get_ydata().tolist()
        assert shown == [rows[label].scores[title].outcome.value for label in ("vtw,k=2", "vtw,k=4")]
    for axes, title in zip(versus_flops.axes, table.columns, strict=True):
        points = {line.get_label(): (line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines[:-1]}
        for label, row in rows.items():
            assert row.flops is not None
            assert points[label] == (pytest.approx(row.flops / 1e7), row.scores[title].outcome.value)
    files = render(versus_flops)
    assert files["png"].startswith(b"\x89PNG") and b"<svg" in files["svg"]
    assert files == render(versus_flops)


def test_file_names_are_harmless_and_say_what_they_show() -> None:
    assert picture_name("llava-1.5-7b", "flops") == "llava-1.5-7b-flops"
    assert picture_name("../a b/ü$", "vtw,position=keep", "k").startswith("a-b-")
    assert picture_name("..", "flops").startswith("model-")
    assert len(picture_name("x" * 400, "y" * 400, "k").encode()) < 200


@pytest.mark.filterwarnings("ignore:Glyph")  # of names that the font of pictures does not have
def test_no_two_models_share_a_picture(tmp_path: Path) -> None:
    models = ["日本", "中国", "m a", "m-a", "M-A", "x" * 100, "x" * 101, "a/b", "a\\b", "é", "e\u0301"]
    make_store(tmp_path, ["baseline", "vtw,k=2", "vtw,k=4"], models=models, tasks=["shapes_vqa"], count=8)
    files = make_report(ReportRequest(folder=tmp_path)).files
    pictures = [name for name in files if name.endswith(".png")]
    assert len({name.casefold() for name in pictures}) == 2 * len(models)
    text = make_report(ReportRequest(folder=tmp_path)).text
    assert all(f"]({name})" in text for name in pictures)
    alone = tmp_path / "alone"
    make_store(alone, ["baseline", "vtw,k=2", "vtw,k=4"], models=["日本"], tasks=["shapes_vqa"], count=8)
    assert set(make_report(ReportRequest(folder=alone)).files) <= set(files)  # a model keeps its file


def test_pictures_whose_file_names_are_equal_are_told_apart() -> None:
    images = [Image("x-fastv-r-k", f"x: scores of fastv,r={r} versus k") for r in ("1", "-1")]
    names = [image.name for image in apart([*images, Image("X-FASTV-r-k", "X"), Image("other", "")])]
    assert len({name.casefold() for name in names}) == 4 and names[-1] == "other"
    assert apart([images[0], images[1]])[0].name == names[0]


def test_kl_of_a_search_is_drawn_beside_the_scores(tmp_path: Path) -> None:
    make_store(tmp_path / "sweep", tasks=["shapes_vqa"], count=20)
    values = torch.tensor([[float("nan"), 4.0, 1.0, 0.25], [float("nan"), 2.0, 0.0, 0.75]], dtype=torch.float64)
    result = SearchResult(3, values.mean(0), values, eta=0.6, start=1, direction="vtw_full", found=True)
    save_divergence(result, "vqa", tmp_path / "kl.json")
    divergence = dict([read_divergence(tmp_path / "kl.json")])
    assert divergence == {"vqa": [(1, 3.0), (2, 0.5), (3, 0.5)]}
    [table] = analyse(read_results(tmp_path / "sweep"))
    found = families(row.method for row in table.rows)
    figure = model_plots(table, found, divergence)[0][1]
    curve = figure.axes[-1].lines[0]
    assert (curve.get_xdata().tolist(), curve.get_ydata().tolist()) == ([1, 2, 3], [3.0, 0.5, 0.5])
    assert len(figure.axes) == 1 + len(model_plots(table, found)[0][1].axes)
