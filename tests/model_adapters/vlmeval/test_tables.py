"""Texts on their way through VLMEvalKit's tables: what the model is shown, what it said, what is scored."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import pytest

pytest.importorskip("vlmeval")

from tests.support.kit_data import accept_any_sum, ai2d, encoded, mmbench, mmmu, pope
from vtw_eval.model_adapters.vlmeval import registry as vlmeval_registry
from vtw_eval.model_adapters.vlmeval.evaluate import KitResult, evaluate
from vtw_eval.model_adapters.vlmeval.files import read_predictions
from vtw_eval.model_adapters.vlmeval.models import LlavaVTW
from vtw_eval.model_adapters.vlmeval.prompts.llava import LlavaKit
from vtw_eval.model_adapters.vlmeval.scoring import GUESSED, OPEN_AS_CHOICE
from vtw_eval.model_adapters.vlmeval.session import session
from vtw_eval.tasks.kit import register_kit_datasets
from vtw_eval.tasks.kit_tables import (
    ANSWER_CHANGED,
    OPTION_MISSING,
    TEXT_CHANGED,
    TableError,
    read_exactly,
    read_record,
    record_answers,
    record_file,
)

TEXTS = {
    "equals sign": "=5",
    "formula": "=1+1",
    "two equals signs": "==",
    "plus": "+5",
    "at": "@a",
    "braces": "{=SUM(1)}",
    "address": "http://a.org/" + "b" * 2100,
    "mail": "mailto:a@b.org",
    "internal link": "internal:Sheet1!A1",
    "longer than a cell": "x" * 40_000,
    "control characters": "a\x00b\x0bc",
    "carriage return": "a\r\nb",
    "lines and quotes": 'say "it",\n\tthen',
    "emoji": "\N{GRINNING FACE}\N{VARIATION SELECTOR-16}",
    "half of a surrogate pair": "a\ud83d",
    "line separator": "a\u2028b",
    "escape of a spreadsheet": "_x0041_",
    "leading zeros": "007",
    "trailing zero": "1.50",
    "exponent": "1e5",
    "missing": "NA",
    "none": "None",
    "true": "TRUE",
    "nan": "nan",
    "blank": "",
    "plain": "red",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the kit's folder of tables."""
    folder = tmp_path_factory.mktemp("tables") / "LMUData"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMUData", str(folder))
        patch.delenv("PRED_FORMAT", raising=False)
        accept_any_sum()
        vlmeval_registry.register()
        register_kit_datasets()
        yield folder


@pytest.fixture(scope="module")
def models(checkpoint: Callable[[str], str]) -> Callable[[str], LlavaVTW]:
    """Return one model for each way of reading media."""
    made: dict[str, LlavaVTW] = {}

    def get(media: str = "harness") -> LlavaVTW:
        if media not in made:
            options = {"pretrained": checkpoint("llava"), "method": "baseline", "device": "cpu", "max_new_tokens": 1}
            made[media] = LlavaVTW(**options, media=media, sharing="off")  # what it says is said in turn
        return made[media]

    return get


def write(folder: Path, name: str, rows: Sequence[dict[str, Any]]) -> None:
    pd.DataFrame(rows).to_csv(folder / f"{name}.tsv", sep="\t", index=False)


def run(model: LlavaVTW, dataset: str, told: Sequence[str], folder: Path) -> tuple[KitResult, list[str]]:
    """Evaluate a model that says given answers, and return the result and the texts that it was asked."""
    answers, asked = iter(told), []
    generate = model.generate_inner

    def asking(message: Any, dataset: str | None = None) -> Any:
        asked.append("".join(part["value"] for part in message if part["type"] == "text"))
        return generate(message, dataset)

    def decode(self: Any, tokens: Any, generation: Any) -> list[str]:
        return [next(answers)]

    with (
        mock.patch.object(LlavaKit, "decode", decode),
        mock.patch.object(model, "generate_inner", asking),
    ):
        return evaluate(model, "model", dataset, work_dir=folder, limit=len(told)), asked


@pytest.mark.parametrize("form", ["xlsx", "tsv"])
def test_answers_are_those_of_the_model(
    data: Path, models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setenv("PRED_FORMAT", form)
    told = list(TEXTS.values())
    # The kit strips answers; half of a surrogate pair is no text.
    right = [text.strip().replace("\ud83d", "\N{REPLACEMENT CHARACTER}") for text in told]
    result, _ = run(models(), "Shapes_VQA", told, tmp_path)
    assert list(result.predictions["prediction"]) == right
    assert all(costs["output_tokens"] == 1 for costs in result.predictions["extra_records"])
    table = tmp_path / "model" / f"model_Shapes_VQA.{form}"
    again = read_predictions(table)
    assert list(again["prediction"]) == right
    assert list(again["extra_records"]) == list(result.predictions["extra_records"])
    assert record_file(table).read_bytes().isascii()
    assert not result.noted, "our own datasets score what the model said"


@pytest.mark.parametrize("dataset", ["Shapes_MME", "Shapes_POPE", "Shapes_AI2D", "Shapes_VQA", "Shapes_Caption"])
def test_our_datasets_score_what_the_model_said(data: Path, models: Any, tmp_path: Path, dataset: str) -> None:
    from vlmeval.dataset import build_dataset

    rows = build_dataset(dataset).data.iloc[:8]
    right = [str(answer) for answer in rows["answer"]]
    told = [f"= {answer}." if dataset == "Shapes_AI2D" else f"={answer}." for answer in right]
    result, _ = run(models(), dataset, told, tmp_path)
    names = {"Overall", "perception"}
    whole = {name: value for name, value in result.metrics.items() if name.rpartition("|")[2] in names}
    assert whole
    assert set(whole.values()) == {200.0 * rows["category"].nunique() if dataset == "Shapes_MME" else 1.0}
    assert list(result.predictions["prediction"]) == told


def test_the_kits_score_stays_its_own_and_what_its_table_changed_is_counted(
    data: Path, models: Any, tmp_path: Path
) -> None:
    write(data, "POPE", pope(4))
    told = ["=Yes", "No", "=Yes", "No"]  # all right
    result, _ = run(models(), "POPE", told, tmp_path)
    assert list(result.predictions["prediction"]) == told
    assert result.metrics["split=Overall|acc"] == 50, "a formula that the kit reads as 0 is neither yes nor no"
    assert result.noted == {ANSWER_CHANGED: ["0", "2"]}
    noted = [costs["media"] for costs in result.predictions["extra_records"]]
    assert noted == [[ANSWER_CHANGED], [], [ANSWER_CHANGED], []]
    upright, _ = run(models("upright"), "POPE", told, tmp_path / "upright")
    assert upright.metrics["split=Overall|acc"] == 100
    assert not upright.noted


WORDS = ("None", "NA", "N/A", "null", "nan", "none of them")


def test_options_that_the_kit_takes_for_missing(data: Path, models: Any, tmp_path: Path) -> None:
    rows = ai2d(len(WORDS))
    for row, word in zip(rows, WORDS, strict=True):
        row.update(A=word, answer="A")
    write(data, "AI2D_TEST", rows)
    told = ["A"] * len(WORDS)
    result, asked = run(models(), "AI2D_TEST", told, tmp_path)
    assert ["A." in text for text in asked] == [False] * 5 + [True], "as the kit's own class asks"
    assert result.metrics["split=none|Overall"] == pytest.approx(1 / 6)
    assert result.noted == {OPTION_MISSING: ["0", "1", "2", "3", "4"]}
    assert result.predictions["extra_records"].iloc[4]["media"] == [OPTION_MISSING]
    assert list(result.predictions["A"]) == list(WORDS)
    upright, asked = run(models("upright"), "AI2D_TEST", told, tmp_path / "upright")
    assert all(f"A. {word}\n" in text for word, text in zip(WORDS, asked, strict=True))
    assert upright.metrics["split=none|Overall"] == 1
    assert not upright.noted


def test_numbers_keep_their_form_where_the_kit_would_guess(data: Path, models: Any, tmp_path: Path) -> None:
    rows = ai2d(3)
    for row, (a, b, c) in zip(rows, (("007", "3", "1.50"), ("008", "", "2"), ("010", "5", "3")), strict=True):
        row.update(A=a, B=b, C=c, answer="A")
    write(data, "AI2D_TEST", rows)
    result, asked = run(models(), "AI2D_TEST", ["007", "008", "010"], tmp_path)
    assert "A. 7\nB. 3.0\nC. 1.5" in asked[0]
    assert result.noted[TEXT_CHANGED] == ["0", "1", "2"]
    upright, asked = run(models("upright"), "AI2D_TEST", ["007", "008", "010"], tmp_path / "upright")
    assert "A. 007\nB. 3\nC. 1.50" in asked[0]
    assert "B." not in asked[1], "a blank cell is no option"
    assert upright.metrics["split=none|Overall"] == 1


def test_numbers_beside_a_blank_answer(data: Path, models: Any, tmp_path: Path) -> None:
    """GQA's form: the kit reads "3" beside a blank answer as 3.0, which is no right answer."""
    rows = [{"index": i, "image": encoded(i), "question": f"How many {i}?", "answer": str(3 + i)} for i in range(3)]
    write(data, "GQA_TestDev_Balanced", rows)
    told = ["3", "4", ""]
    result, _ = run(models(), "GQA_TestDev_Balanced", told, tmp_path)
    assert result.noted == {ANSWER_CHANGED: ["0", "1", "2"]}
    assert result.metrics["Overall"] == 0
    upright, _ = run(models("upright"), "GQA_TestDev_Balanced", told, tmp_path / "upright")
    assert upright.metrics["Overall"] == pytest.approx(200 / 3)


def test_a_record_of_another_table_is_not_believed(tmp_path: Path) -> None:
    from vlmeval.smp import dump

    table = tmp_path / "m_POPE.xlsx"
    writing = record_answers(dump, lambda table, data, record: None)
    writing(pd.DataFrame({"index": [0, 1], "prediction": ["=yes", "no"]}), str(table))
    assert list(read_exactly(table)["prediction"]) == ["=yes", "no"]
    record = read_record(table)
    assert record is not None
    assert record.changed == {"0": "0"}
    dump(pd.DataFrame({"index": [0, 1], "prediction": ["maybe", "=no"]}), str(table))
    assert read_record(table) is None
    assert list(read_exactly(table)["prediction"]) == ["maybe", "=no"], "a formula's text is still there"


def test_a_table_that_cannot_be_written(data: Path, models: Any, tmp_path: Path) -> None:
    def fail(*given: Any, **named: Any) -> None:
        raise ValueError("too many rows")

    with mock.patch.object(pd.DataFrame, "to_excel", fail), pytest.raises(TableError, match="could not write") as error:
        run(models(), "Shapes_VQA", ["red", "=5"], tmp_path)
    file = tmp_path / "model" / "model_Shapes_VQA_answers.jsonl"
    assert str(file) in str(error.value)
    assert [json.loads(line)["prediction"] for line in file.read_text().splitlines()[1:]] == ["red", "=5"]


@pytest.mark.parametrize("form", ["json", "csv", "JSON"])
def test_kinds_of_tables_that_the_kit_cannot_score_are_refused(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setenv("PRED_FORMAT", form)
    with pytest.raises(ValueError, match=f"PRED_FORMAT={form.lower()} is not possible"), session({}):
        pass


def test_reused_answers_are_those_of_the_model(data: Path, models: Any, tmp_path: Path) -> None:
    """As with --reuse: the kit takes answers from its table, and asks only for those that it lacks."""
    from vlmeval import run as kit_run

    told = ["=Yes", "007", "", "No"]
    result, _ = run(models(), "Shapes_POPE", told, tmp_path)
    with session({}):
        dataset = kit_run.build_dataset("Shapes_POPE")
        kit_run.infer_data_job(models(), work_dir=str(tmp_path / "model"), model_name="model", dataset=dataset, limit=4)
    again = read_predictions(tmp_path / "model" / "model_Shapes_POPE.xlsx")
    assert list(again["prediction"]) == told
    assert list(again["extra_records"]) == list(result.predictions["extra_records"])


def test_mmbench_writes_its_table_again(data: Path, models: Any, tmp_path: Path) -> None:
    write(data, "MMBench_DEV_EN", mmbench(1))
    told = ["=A", "D", "C", "B"]
    run(models(), "MMBench_DEV_EN", told, tmp_path)
    assert list(read_predictions(tmp_path / "model" / "model_MMBench_DEV_EN.xlsx")["prediction"]) == told


@pytest.mark.parametrize(
    ("text", "right", "theirs"),
    [("The answer is 2.", 1, 1), ("2", 1, 1), ("12", 0, 1), ("A", 0, 1), ("Area A", 0, 1), ("B", 0, 0), ("", 0, 0)],
)
def test_open_questions_of_mmmu(
    data: Path, models: Any, tmp_path: Path, text: str, right: float, theirs: float
) -> None:
    rows = [row for row in mmmu(30) if row["question_type"] == "open"][:3]  # their answer is 2
    write(data, "MMMU_DEV_VAL", [{**row, "split": "validation"} for row in rows])
    indices = [str(row["index"]) for row in rows]
    result, _ = run(models(), "MMMU_DEV_VAL", [text] * 3, tmp_path)
    assert result.metrics["split=validation|Overall"] == theirs, "the kit's own score"
    assert result.noted[OPEN_AS_CHOICE] == indices
    upright, _ = run(models("upright"), "MMMU_DEV_VAL", [text] * 3, tmp_path / "upright")
    assert upright.metrics["split=validation|Overall"] == right
    assert not upright.noted


class Judge:
    """A judge that never tells an option."""

    def __init__(self, **given: Any) -> None:
        pass

    def working(self) -> bool:
        return True

    def generate(self, prompt: str) -> str:
        return "I do not know."


def test_the_same_answer_gets_the_same_guess(data: Path, models: Any, tmp_path: Path) -> None:
    """Where a judge does not help, the kit draws an option, which must not depend on the answers before it."""
    write(data, "AI2D_TEST", ai2d(24))
    hits = []
    for number, wrong in enumerate((0, 12)):  # answers that are read draw nothing
        told = ["A"] * wrong + ["zebra"] * (24 - wrong)
        folder = tmp_path / str(number)
        with mock.patch("vlmeval.dataset.image_mcq.build_judge", Judge):
            result = evaluate_with_judge(models(), told, folder)
        table = pd.read_excel(folder / "model" / "model_AI2D_TEST_openai_result.xlsx")
        hits.append(list(table["hit"])[12:])
        assert result.noted[GUESSED] == sorted(str(i) for i in range(wrong, 24))
    assert hits[0] == hits[1]
    assert 0 < sum(hits[0]) < 12, "not the same option for all"


def evaluate_with_judge(model: LlavaVTW, told: Sequence[str], folder: Path) -> KitResult:
    with mock.patch.object(LlavaKit, "decode", side_effect=[[text] for text in told]):
        return evaluate(model, "model", "AI2D_TEST", work_dir=folder, limit=len(told), judge="chatgpt-0125")


def test_tgif_scores_what_the_model_said(tmp_path: Path) -> None:
    from vlmeval.smp import dump

    from vtw_eval.tasks.tgif.kit import TGIFQA

    answers = ["3", "none", "null", "007", "blue", "four"]
    told = ["=3", "None", "null", "007.", "", "4"]
    file = tmp_path / "m_TGIF-QA_8frame.xlsx"
    rows = pd.DataFrame({"index": range(6), "question": "what ?", "answer": answers, "prediction": told})
    record_answers(dump, lambda table, data, record: None)(rows, str(file))
    assert TGIFQA.evaluate(str(file)) == {"exact_match": pytest.approx(5 / 6), "contains_match": pytest.approx(5 / 6)}
    record_file(file).unlink()
    again = TGIFQA.evaluate(str(file))
    assert again["exact_match"] == pytest.approx(5 / 6), "a table without a record is read as texts, too"


def test_the_command_writes_what_was_noted_into_its_status(tmp_path: Path) -> None:
    from vlmeval.smp.status_report import upsert_run_status

    from vtw_eval.model_adapters.vlmeval.cli import Outcomes
    from vtw_eval.model_adapters.vlmeval.session import Session

    upsert_run_status(tmp_path, noted={"MME": {ANSWER_CHANGED: {"count": 1, "index": ["7"]}}})
    kit = Session(noted={"POPE": {ANSWER_CHANGED: [str(i) for i in range(12)]}, "AI2D_TEST": {}})
    outcomes = Outcomes(kit, argparse.Namespace(mode="all", limit=None, reuse=False))
    noting = outcomes.noting(lambda **given: None)
    noting(dataset_name="POPE", status="done", run_dir=tmp_path, skip_reason="mode_infer")
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["noted"] == {
        "MME": {ANSWER_CHANGED: {"count": 1, "index": ["7"]}},
        "POPE": {ANSWER_CHANGED: {"count": 12, "index": [str(i) for i in range(10)]}},
    }


def test_scores_of_an_earlier_runs_answers_tell_the_same(data: Path, models: Any, tmp_path: Path) -> None:
    """As with --mode eval: nothing is asked, and the table is there."""
    from vlmeval import run as kit_run

    write(data, "POPE", pope(4))
    run(models(), "POPE", ["=Yes", "No", "=Yes", "No"], tmp_path)
    for media, accuracy in (("harness", 50), ("upright", 100)):
        with session({}) as kit:
            kit.media = media
            dataset = kit_run.build_dataset("POPE")
            (tmp_path / "model" / "model_POPE_auxmatch.xlsx").unlink(missing_ok=True)
            scores = dataset.evaluate(str(tmp_path / "model" / "model_POPE.xlsx"))
            assert scores["acc"].iloc[0] == accuracy
            assert kit.noted["POPE"] == ({ANSWER_CHANGED: ["0", "2"]} if media == "harness" else {})
