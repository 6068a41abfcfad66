"""MMMU in sweeps: pictures at their marks, and answers that name no option, under both harnesses."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest

pytest.importorskip("lmms_eval")
pytest.importorskip("vlmeval")

import pandas as pd

from tests.support import harness_data
from tests.support.checkpoints import make_checkpoint
from tests.support.kit_data import accept_any_sum, mmmu
from vtw_eval.model_adapters.lmms.picture_marks import WORDS_LOST
from vtw_eval.model_adapters.vlmeval.prompts.llava import LlavaKit
from vtw_eval.model_adapters.vlmeval.scoring import OPEN_AS_CHOICE
from vtw_eval.models.llava import Llava
from vtw_eval.record.cell import CellSpec
from vtw_eval.sweep.harness import Evaluation, Settings, find_harness

COUNT = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a folder with MMMU for both harnesses and a checkpoint; the second question names a picture twice."""
    base = tmp_path_factory.mktemp("mmmu")
    write = harness_data.write_table

    def writing(folder: Path, split: str, rows: Any, *rest: Any) -> None:
        rows[1].update(question="Seed <image 1> grows into <image 1> after rain.")
        write(folder, split, rows, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness_data, "write_table", writing)
        patch.setenv("HF_HOME", str(base / "hf_home"))
        patch.setenv("LMUData", str(base))
        harness_data.make_mmmu(base, COUNT)
        pd.DataFrame(mmmu(COUNT)).to_csv(base / "MMMU_DEV_VAL.tsv", sep="\t", index=False)
        accept_any_sum()
        make_checkpoint("llava", base / "llava")
        patch.chdir(base)
        yield base


def evaluate(harness: str, told: list[str], **options: Any) -> Evaluation:
    task = {"lmms-eval": "mmmu_val", "vlmevalkit": "MMMU_DEV_VAL"}[harness]
    arguments = {"dtype": "float32", **options}
    spec = CellSpec(
        model="m",
        adapter="llava_vtw",
        pretrained="llava",
        method="baseline",
        task=task,
        model_args=arguments,
        harness=harness,
    )
    cls = Llava if harness == "lmms-eval" else LlavaKit
    short = {"max_new_tokens": 1, "do_sample": False}
    with (
        mock.patch.object(cls, "decode", side_effect=[[text] for text in told]),
        mock.patch.object(cls, "generation", lambda self, given: {**short, **self.stop_ids}),
    ):
        return find_harness(spec.harness).open(spec, Settings("cpu")).evaluate(spec, lambda answered, of: None)


def test_the_same_answer_scores_the_same_whatever_stood_before_it(folder: Path) -> None:
    scores = []
    for read in (0, 9):  # an answer that is read draws nothing
        found = evaluate("lmms-eval", ["B"] * read + ["zebra"] * (COUNT - read))
        guessed = {sample.doc_id: sample.scores["mmmu_acc"] for sample in found.samples if sample.answer == "zebra"}
        assert len(guessed) == COUNT - read
        assert found.environment["guessed"].startswith("the answer could not be read, and an option was drawn: ")
        costs = found.samples[1].costs
        assert costs is not None and WORDS_LOST in costs.media
        scores.append(guessed)
    assert {doc: scores[0][doc] for doc in scores[1]} == scores[1]
    assert 0 < sum(scores[0].values()) < COUNT / 2


def test_open_questions_are_noted_in_the_kit(folder: Path) -> None:
    found = evaluate("vlmevalkit", ["Area A"] * COUNT)
    noted = {sample.doc_id for sample in found.samples if sample.costs and OPEN_AS_CHOICE in sample.costs.media}
    assert noted == {str(row["index"]) for row in mmmu(COUNT) if row["question_type"] == "open"}
    right = {sample.doc_id for sample in found.samples if any(sample.scores.values())}
    assert right == noted, "the kit's own score"
    upright = evaluate("vlmevalkit", ["Area A"] * COUNT, media="upright")
    assert not any(value for sample in upright.samples for value in sample.scores.values())
    assert all(sample.scores for sample in upright.samples)
