"""Pictures show what the table holds."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.lines import Line2D
from scipy.optimize import minimize

from tests.report.made import make_store
from vtw_eval.methods.vtw.search import SearchResult
from vtw_eval.report import analyse, read_results
from vtw_eval.report.analysis import ModelTable
from vtw_eval.report.drawing import render
from vtw_eval.report.labels import families
from vtw_eval.report.make import ReportRequest, make_report
from vtw_eval.report.panels import pareto_front
from vtw_eval.report.plots import apart, model_plots, picture_name
from vtw_eval.report.render.blocks import Image
from vtw_eval.report.search import read_divergence, save_divergence
from vtw_eval.report.series import GREY, series_of, spread


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("higher", [True, False])
def test_the_front_is_what_no_other_point_beats(seed: int, higher: bool) -> None:
    points = [tuple(map(float, p)) for p in np.random.default_rng(seed).integers(0, 6, size=(12, 2))]
    sign = 1 if higher else -1

    def beaten(p: tuple[float, float]) -> bool:
        return any(q != p and q[0] <= p[0] and sign * q[1] >= sign * p[1] for q in points)

    expected = sorted({p for p in points if not beaten(p)})
    assert pareto_front(points, higher_is_better=higher) == expected


def drawn(axes: Axes, kind: str) -> dict[str, Line2D]:
    return {str(line.get_gid()): line for line in axes.lines if str(line.get_gid()).startswith(f"{kind}-")}


def test_pictures_hold_the_values_of_the_table(tmp_path: Path) -> None:
    make_store(tmp_path, ["baseline", "vtw,k=4", "vtw,k=2", "fastv"], models=["a $model$/x"])
    [table] = analyse(read_results(tmp_path))
    plots = model_plots(table, families(row.method for row in table.rows))
    digits = hashlib.sha256(b"a $model$/x").hexdigest()[:6]
    names = [f"a-model-x-{digits}-flops", f"a-model-x-{digits}-vtw-position-keep-k"]
    assert [plot.image.name for plot in plots] == names
    versus_flops, versus_k = (plot.figure() for plot in plots)
    rows = {row.label: row for row in table.rows}
    for axes, title in zip(versus_k.axes, table.columns, strict=True):
        assert axes.lines[0].get_xdata().tolist() == [2, 4]
        shown = axes.lines[0].get_ydata().tolist()
        assert shown == [rows[label].scores[title].outcome.value for label in ("vtw,k=2", "vtw,k=4")]
    for axes, title in zip(versus_flops.axes, table.columns, strict=True):
        places = [(line.get_xdata()[0], line.get_ydata()[0]) for line in drawn(axes, "point").values()]
        values = [((row.flops or 0) / 1e7, row.scores[title].outcome.value) for row in rows.values()]
        assert sorted(places) == [pytest.approx(place) for place in sorted(values)]
        bars = [bar.get_segments()[0][:, 1].tolist() for bar in axes.collections]
        intervals = [row.scores[title].interval for row in rows.values()]
        assert sorted(bars) == [pytest.approx(ends) for ends in sorted([one.low, one.high] for one in intervals if one)]
        # One line joins VTW's ks, cheapest first; FastV has one strength.
        ends = {len(line.get_xdata()): line for line in drawn(axes, "line").values()}
        assert list(ends[2].get_xdata()) == sorted(ends[2].get_xdata()) and set(ends) == {1, 2}
    files = render(versus_flops)
    assert files["png"].startswith(b"\x89PNG") and b"<svg" in files["svg"]
    assert files == plots[0].files()


MANY = [
    "baseline",
    *(f"vtw,k={k}" for k in (2, 4, 5, 6, 8, "search")),
    *(f"{name},k={k},r={r}" for name in ("fastv", "random_vision") for k in (1, 2) for r in (0.25, 0.5, 0.75)),
    *("dyvte", "tome", "pyramiddrop", "feather", "himap", "sparsevlm", "dart", "divprune", "cdpruner"),
    *("rand,k=6", "random_k", "uniform", "first", "last", "downsample", "fastv+vtw,fastv.k=2,vtw.k=6"),
]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> ModelTable:
    folder = tmp_path_factory.mktemp("many")
    make_store(folder, MANY, tasks=["shapes_vqa"], count=20, wrong={method: 0.0 for method in MANY[::2]})
    [table] = analyse(read_results(folder))
    return table


def test_a_kind_has_one_colour_and_no_two_kinds_look_alike(many: ModelTable) -> None:
    series = series_of(many)
    looks = {one.kind: {(other.color, other.marker) for other in series if other.kind == one.kind} for one in series}
    assert all(len(own) == 1 for own in looks.values())
    assert len({next(iter(own)) for own in looks.values()}) == len(looks) == 19
    assert {one.kind for one in series if one.color == GREY} == {one.kind for one in series if one.control}
    shown = {one.label: [row.method for row in one.rows] for one in series}
    assert [spec.partition(",position")[0] for spec in shown["vtw k=2…8"]] == [f"vtw,k={k}" for k in (8, 6, 5, 4, 2)]
    assert {"fastv k=1 r=0.25…0.75", "fastv k=2 r=0.25…0.75"} <= set(shown)
    assert any("search" in spec for label, own in shown.items() for spec in own if len(own) == 1)
    assert sum(map(len, shown.values())) == len(MANY) - 1 and len(shown) == len(series)


def test_no_label_lies_over_another_or_outside(many: ModelTable) -> None:
    [plot] = [plot for plot in model_plots(many, ()) if plot.image.name.endswith("flops")]
    figure = plot.figure()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    [axes] = figure.axes
    boxes = sorted((text.get_window_extent(canvas.get_renderer()) for text in axes.texts), key=lambda box: box.y0)
    assert len(boxes) == len(series_of(many)) + 1
    assert all(below.y1 <= above.y0 + 0.5 for below, above in itertools.pairwise(boxes))  # half a pixel
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes)


@pytest.mark.parametrize("seed", range(20))
def test_labels_stand_as_near_to_their_points_as_they_can(seed: int) -> None:
    rng = np.random.default_rng(seed)
    wanted = sorted(rng.choice([0.0, 0.5, 0.9, 1.0], 8) + rng.normal(0, 0.02, 8))
    found = np.array(spread(wanted, 0.1, 0.0, 1.0))
    # The least sum of squared moves, by a general solver.
    best = minimize(
        lambda places: ((places - wanted) ** 2).sum(),
        np.linspace(0, 1, 8),
        bounds=[(0, 1)] * 8,
        constraints=[{"type": "ineq", "fun": lambda places: np.diff(places) - 0.1}],
        method="SLSQP",
        options={"ftol": 1e-12},
    ).x
    assert found == pytest.approx(best, abs=1e-4)
    assert spread([0.5] * 30, 0.1, 0.0, 1.0) == pytest.approx(np.linspace(0, 1, 30).tolist())
    assert spread([], 0.1, 0.0, 1.0) == []


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
    figure = model_plots(table, found, divergence)[1].figure()
    curve = figure.axes[-1].lines[0]
    assert (curve.get_xdata().tolist(), curve.get_ydata().tolist()) == ([1, 2, 3], [3.0, 0.5, 0.5])
    assert len(figure.axes) == 1 + len(model_plots(table, found)[1].panels)
