"""Prompts and scores of the two shapes tasks that no stock benchmark covers: one-word answers and captions."""

from __future__ import annotations

from typing import Any

from lmms_eval.api.metrics import exact_match_hf_evaluate
from PIL import Image

from vtw_eval.tasks.shapes.captions import object_f1


def doc_to_visual(doc: dict[str, Any]) -> list[Image.Image]:
    """Return the image of a document."""
    return [doc["image"].convert("RGB")]


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, str]) -> str:
    """Return the question with what the task file puts before and after it."""
    return f"{lmms_eval_specific_kwargs['pre_prompt']}{doc['question']}{lmms_eval_specific_kwargs['post_prompt']}"


def _exact_match(prediction: str, answer: str) -> float:
    """lmms-eval's own exact match, with the options that its GQA and AI2D tasks give it."""
    scores = exact_match_hf_evaluate([prediction], [answer], ignore_case=True, ignore_punctuation=True)
    return float(scores["exact_match"])


def vqa_process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Score a one-word answer.

    Parameters
    ----------
    doc
        The document.
    results
        The model's answer, alone in a list.

    Returns
    -------
    dict
        ``exact_match`` and the same under ``<category>_exact_match``, 0 or 1.
    """
    score = _exact_match(results[0].strip(), doc["answer"])
    return {"exact_match": score, f"{doc['category']}_exact_match": score}


def caption_process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Score a caption.

    Parameters
    ----------
    doc
        The document.
    results
        The model's caption, alone in a list.

    Returns
    -------
    dict
        ``exact_match`` (0 or 1) and ``object_f1`` (0 to 1).
    """
    prediction = results[0].strip()
    return {
        "exact_match": _exact_match(prediction, doc["answer"]),
        "object_f1": object_f1(prediction, doc["answer"]),
    }
