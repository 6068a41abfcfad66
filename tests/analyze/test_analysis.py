"""Means over documents, answers by k, the files of an analysis, and the command."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from vtw_eval.analyze import Agreement, Attention, TaskAnalysis, analyse, analysis_files
from vtw_eval.analyze.documents import OverDocuments, over_documents
from vtw_eval.analyze.figures import plots
from vtw_eval.analyze.roles import ROLES
from vtw_eval.analyze.tables import csv_files
from vtw_eval.analyze.words import reading
from vtw_eval.cli import app
from vtw_eval.methods import VTW, Baseline, parse_method
from vtw_eval.models.curve import CurveRunner
from vtw_eval.models.family import content_of
from vtw_eval.models.runner import Request, Runner
from vtw_eval.shapes.data import held_out
from vtw_eval.shapes.questions import prompt

KS = (2, 5)


def asked(count: int) -> list[Request]:
    found = []
    for number, sample in enumerate(held_out("caption", count)):
        content = content_of(prompt(sample.question), [Image.fromarray(sample.image)])
        messages = [{"role": "user", "content": content}]
        found.append(
            Request(
                f"doc_id {number}",
                0,
                {"max_new_tokens": 12},
                lambda f, m=messages: f.chat_prompt(m),
                "captions",
                str(number),
            )
        )
    return found


def opened(kind: type[Runner], **more: Any) -> Any:
    given = {"pretrained": "shapes", "method": "baseline", "verify": False, "dtype": "float32", **more}
    return kind("llava_vtw", given, simple=False, device=torch.device("cpu"), log=lambda line: None)


@pytest.fixture(scope="module")
def analysis() -> TaskAnalysis:
    return analyse(opened(CurveRunner), "captions", asked(3), [parse_method("vtw,k=5"), Baseline()], KS)


def test_a_document_counts_as_far_as_it_reaches() -> None:
    values = [np.array([[1.0, np.nan], [3.0, 5.0]]), np.array([[2.0, 4.0]])]
    found = over_documents(values)
    assert found.mean.tolist() == [[1.5, 4.0], [3.0, 5.0]]
    assert found.documents.tolist() == [[2, 1], [1, 1]]
    assert found.sd[0, 0] == pytest.approx(np.std([1, 2], ddof=1)) and np.isnan(found.sd[0, 1])


def test_answers_by_k_are_those_of_a_run_of_its_own(analysis: TaskAnalysis) -> None:
    runner = opened(Runner, sharing="off")
    answers = {}
    for k in (10, *KS):
        runner.exchange(VTW(k=k))
        answers[k] = [answer.text for answer in runner.answer(asked(3), progress=False)]
    assert [one.k for one in analysis.agreement] == list(KS)
    for one in analysis.agreement:
        assert one.share == np.mean([a == b for a, b in zip(answers[one.k], answers[10], strict=True)])
        assert one.low <= one.share <= one.high and one.divergence is not None
    assert analysis.agreement[0].divergence > analysis.agreement[1].divergence


def test_what_was_read_is_a_distribution_and_none_of_it_is_vision_after_withdrawal(analysis: TaskAnalysis) -> None:
    unchanged, withdrawn = analysis.attention
    assert (unchanged.method, withdrawn.method) == ("baseline", "vtw,k=5")
    assert unchanged.predicted == unchanged.tokens and withdrawn.predicted == withdrawn.tokens
    vision = ROLES.index("vision")
    assert (withdrawn.by_layer.mean[5:, vision] == 0).all() and (withdrawn.by_layer.mean[:5, vision] > 0).all()
    np.testing.assert_allclose(unchanged.kinds["mean"].mean[:5], withdrawn.kinds["mean"].mean[:5], rtol=1e-5)
    rows = list(csv.DictReader(io.StringIO(csv_files([analysis])["attention.csv"])))
    sums: dict[tuple[str, ...], float] = {}
    for row in rows:
        if row["role"] in ROLES:
            key = (row["method"], row["layer"], row["token"])
            sums[key] = sums.get(key, 0.0) + float(row["mean"])
    tokens = [len(one.shares.mean) for one in analysis.attention]
    assert len(sums) == sum(10 * count + 10 + count + 1 for count in tokens)
    assert max(abs(value - 1) for value in sums.values()) < 1e-4


def test_the_text_and_the_tables_hold_the_same_numbers(analysis: TaskAnalysis) -> None:
    files = analysis_files([analysis], "shapes", "vtw-eval analyze")
    assert {Path(name).suffix for name in files} == {".md", ".csv", ".png", ".svg"} and len(files) == 15
    text = files["README.md"].decode()
    for one in analysis.agreement:
        assert f"| {one.k} | {100 * one.share:.1f} % [" in text
    entropies = [row for row in csv.DictReader(io.StringIO(files["entropy.csv"].decode())) if row["kind"] == "cross"]
    assert [row["entropy"] == "" for row in entropies] == [False] * 15 + [True] * 5
    assert all(name.encode() in files["README.md"] for name in files if name.endswith((".svg", ".csv")))


def made(system: list[float], vision: list[float], cross: list[float], after: float, same: float = 1.0) -> TaskAnalysis:
    """An analysis of six layers with given shares: the rest is the instruction's."""

    def over(values: Any) -> OverDocuments:
        array = np.array(values, dtype=np.float64)
        return OverDocuments(array, np.zeros_like(array), np.full(array.shape, 4))

    layers = [[s, v, 0, 1 - s - v, 0, s / 2] for s, v in zip(system, vision, strict=True)]
    shares = over(layers)
    tokens = over([shares.mean.mean(axis=0).tolist()] * 3)

    def kinds(gone: bool) -> dict[str, OverDocuments]:
        mass = [[0.5, np.nan if gone and i >= 3 else c, 1 - c] for i, c in enumerate(cross)]
        entropy = [[1.0, 1.0, after if gone and i >= 3 else 2.0] for i in range(6)]
        return {"mass": over(mass), "entropy": over(entropy), "mean": over(mass), "variance": over(mass)}

    counts = (35.0, 576.0, 0.0, 20.0, 2.0)
    both = [
        Attention(name, shares, shares, tokens, tokens, kinds(name != "baseline"), 12, 12, counts)
        for name in ("baseline", "vtw,k=3")
    ]
    agreement = (Agreement(2, 0.5, 0.2, 0.8, 1.0), Agreement(3, same, 0.7, 1.0, None))
    return TaskAnalysis("pope", 4, 6, tuple(both), agreement)


def text_of(one: TaskAnalysis) -> str:
    return reading([one], "model", plots([one], "model"))


def test_the_text_agrees_with_the_papers_where_the_numbers_do() -> None:
    stages = [0.6, 0.3, 0.2, 0.2, 0.5, 0.4]
    text = text_of(made([0.1, 0.5, 0.8, 0.8, 0.85, 0.85], [0.7, 0.3, 0.1, 0.05, 0.05, 0.05], stages, 2.01))
    assert "That is the sink of the paper." in text and "fades with depth, as in VTW: 50.0 %" in text
    assert "falls from 60.0 % to 20.0 % in layer 2 and resumes to 50.0 %, as the three stages have it" in text
    assert "the same, as in DyVTE's Fig. 5. Yet" not in text and "the same, as in DyVTE's Fig. 5." in text
    assert "stay the same from k=3 on; vision tokens get 5.0 % of the attention from there on" in text


def test_the_text_contradicts_them_where_they_do_not() -> None:
    text = text_of(made([0.1] * 6, [0.6] * 6, [0.6] * 6, 1.0))
    assert "not what the paper saw: no majority goes to the system tokens, and vision tokens get 60.0 %" in text
    assert "does not fade with depth" in text and "not the same, unlike DyVTE's Fig. 5" in text
    assert "stays between 60.0 % (layer 0) and 60.0 % (layer 0): no stages can be told apart" in text
    assert "vision tokens 60.0 % of its attention all the same, so that attention is no measure of use" in text
    text = text_of(made([0.1] * 6, [0.6] * 6, [0.6, 0.5, 0.4, 0.3, 0.2, 0.1], 1.0))
    assert "does not resume (10.0 % at most)" in text
    text = text_of(made([0.1] * 6, [0.6] * 6, [0.6] * 6, 2.01, same=0.75))
    assert "DyVTE's Fig. 5. Yet 25.0 % of the answers of pope are others at this k" in text
    assert "answers do not stay the same at any k that was run: at k=3 75.0 % of them do" in text


def test_the_command_writes_a_folder(tmp_path: Path) -> None:
    Image.fromarray(held_out("open_count", 1)[0].image).save(tmp_path / "scene.png")
    given = ["--image", str(tmp_path / "scene.png"), "--question", "How many objects are there?", "--no-verify"]
    common = ["analyze", "--model-args", "pretrained=shapes,dtype=float32", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*common, *given, "--method", "vtw,k=4", "--k", "4,9", "--max-new-tokens", "3"])
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "out").iterdir())) == 15
    rows = list(csv.DictReader((tmp_path / "out" / "agreement.csv").open()))
    assert [row["k"] for row in rows] == ["4", "9"] and {row["task"] for row in rows} == {"questions"}
    for words, message in (
        ([], "give --task; or --image or --video, and --question"),
        (["--task", "shapes_vqa", *given], "leave --image, --video, --question out"),
        ([*given, "--k", "4,x"], "write numbers with commas"),
        ([*given, "--k", "10"], "k is a number of layers from 0 to 9"),
        ([*given, "--method", "vtw,k=search"], "k=search does not work with vtw-eval analyze"),
    ):
        done = CliRunner().invoke(app, [*common, *words])
        assert done.exit_code == 2 and message in " ".join(done.output.split()), done.output
