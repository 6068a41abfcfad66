"""MM-Vet's scores, with the judge's failures told instead of counted as wrong answers."""

from __future__ import annotations

from typing import Any

from lmms_eval.tasks.mmvet.utils import mmvet_process_results


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """Score an answer as lmms-eval's ``mmvet`` does.

    Raises
    ------
    RuntimeError
        If the judge gave no answer; lmms-eval's own task scores 0 then.
    """
    scored = mmvet_process_results(doc, results)
    if not scored["gpt_eval_score"]["eval_model"]:
        raise RuntimeError(
            f"no judge scored MM-Vet question {doc['question_id']}: set OPENAI_API_KEY, and OPENAI_API_URL and "
            "MODEL_VERSION for a judge of your own."
        )
    return scored
