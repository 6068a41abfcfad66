"""The matrix of methods and families: what it tells, and where it must not be silent."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("lmms_eval")

from tests import support_matrix
from tests.support_matrix import FAMILIES, Cell, document, examples, matrix
from vtw_eval.methods.registry import METHODS
from vtw_eval.models.adapters import ADAPTERS


def test_two_families_and_three_methods(tmp_path: Path) -> None:
    methods = examples(["baseline", "vtw", "fastv"])
    found = matrix(["llava", "video_llava"], methods, tmp_path, verify=False)
    assert set(found) == {
        (kind, family, name)
        for kind, family in (("images", "llava"), ("images", "video_llava"), ("videos", "video_llava"))
        for name in methods
    }
    # 56 pixels in patches of 14: 16 tokens of each of three pictures; videos of eight frames have a CLS token in each
    for kind, family, total in (
        ("images", "llava", 48),
        ("images", "video_llava", 48),
        ("videos", "video_llava", 2 * 8 * 17),
    ):
        assert found[kind, family, "baseline"] == Cell(total, total)
        assert found[kind, family, "vtw"] == Cell(0, total)
        assert found[kind, family, "fastv"] == Cell(total // 2, total)
    text = document(found, methods)
    assert "| `baseline`" in text and "| 48 of 48 | 48 of 48" in text and "refused" not in text


def test_refusals_are_numbered_by_their_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vtw_eval import FastV

    def refuse(self: FastV, *given: object) -> None:
        raise ValueError(f"{self},x=1 sees\nno picture.")

    monkeypatch.setattr(FastV, "score", refuse)
    methods = examples(["baseline", "fastv"])
    found = matrix(["llava"], methods, tmp_path, verify=False)
    assert found["images", "llava", "fastv"] == Cell(refusal="it sees no picture.")
    found["videos", "llava", "baseline"] = Cell(refusal="no videos.")
    found["videos", "llava", "fastv"] = Cell(refusal="it sees no picture.")
    text = document(found, methods)
    assert text.count("no (1)") == 2 and text.count("no (2)") == 1
    assert text.endswith("1. it sees no picture.\n2. no videos.")


def test_a_bug_is_no_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vtw_eval import FastV

    monkeypatch.setattr(FastV, "score", lambda self, *given: {}["missing"])
    with pytest.raises(RuntimeError, match="KeyError"):
        matrix(["llava"], examples(["fastv"]), tmp_path, verify=False)


def test_every_method_and_every_adapter_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(examples()) == list(METHODS)
    assert {checkpoint.adapter for checkpoint in FAMILIES.values()} == set(ADAPTERS)
    monkeypatch.setattr(support_matrix, "EXAMPLES", examples(["vtw"]))
    with pytest.raises(LookupError, match=r"has no example of baseline, rand, "):
        examples()
