"""The functions of the lmms-eval task ``tgif_frameqa``."""

from __future__ import annotations

from typing import Any

from vtw_eval.tasks.tgif.data import video_path
from vtw_eval.tasks.tgif.scoring import scores


def doc_to_visual(doc: dict[str, Any]) -> list[str]:
    """Return the path of the document's video."""
    return [video_path(doc["video"])]


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, str]) -> str:
    """Return the question with what the task file puts before and after it."""
    return f"{lmms_eval_specific_kwargs['pre_prompt']}{doc['question']}{lmms_eval_specific_kwargs['post_prompt']}"


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Score an answer: ``exact_match`` and ``contains_match``, each 0 or 1."""
    return scores(results[0], doc["answer"])
