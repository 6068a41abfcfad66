"""Reading a pass: which of its tokens are the prompt's, which of those show a picture, and which are an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vtw_eval.anatomy import Anatomy
from vtw_eval.engine.calls import MASK
from vtw_eval.engine.layout import Prompt
from vtw_eval.engine.masks import validity


class PromptReader:
    """Reads the prompts of a model; it remembers the last one, which a generation without cache repeats.

    Parameters
    ----------
    anatomy
        The model.
    vision_mask, prompt_ids, answer_mask
        See :func:`vtw_eval.engine.install`.
    """

    def __init__(
        self, anatomy: Anatomy, vision_mask: Tensor | None, prompt_ids: Tensor | None, answer_mask: Tensor | None
    ) -> None:
        self.anatomy = anatomy
        self.vision_mask = vision_mask
        self.prompt_ids = prompt_ids
        self.answer_mask = answer_mask
        self.generating: int | None = None
        """Length of the prompt of the ``generate`` under way."""
        self.uncached: tuple[Tensor, int] | None = None
        """Ids of a prompt without cache, and the length of the last pass that began with it."""

    def read(
        self, source: Tensor, arguments: Mapping[str, Any], seen: Mapping[str, Any], *, cached: bool
    ) -> tuple[Prompt, bool]:
        """Return the prompts of a prefill, and whether it is a later step of a generation without cache.

        Parameters
        ----------
        source
            Ids or embeddings that the decoder gets, ``[rows, tokens, ...]``.
        arguments
            Of the decoder.
        seen
            ``input_ids``, ``attention_mask`` and ``labels`` of the whole model, which need not pass them on.
        cached
            Whether the pass fills a KV cache.

        Raises
        ------
        ValueError
            If it cannot be known which tokens are vision tokens, or what the caller gave does not fit the prompt.
        """
        rows, length = source.shape[:2]
        ids = seen.get("input_ids", arguments.get("input_ids"))
        if ids is None and self.prompt_ids is not None:
            ids = _for_rows("prompt_ids", self.prompt_ids, rows, length)
        elif ids is not None and ids.shape != (rows, length):
            raise ValueError(f"input_ids have shape {tuple(ids.shape)}, the decoder gets {(rows, length)}.")
        mask = seen.get(MASK)
        device = torch.device("cpu") if source.is_meta else source.device  # choices need values
        valid = validity(arguments.get(MASK) if mask is None else mask, rows, length, device)
        vision = self._vision(ids, rows, length, device) & valid
        prompt_length, continued = self._prompt_length(ids, length, cached)
        vision[:, prompt_length:] = False  # placeholder ids in an answer show nothing
        ends = self._ends(valid, vision, prompt_length, seen.get("labels"))
        return Prompt(valid, vision, ids, ends), continued

    def _vision(self, ids: Tensor | None, rows: int, length: int, device: torch.device) -> Tensor:
        if self.vision_mask is not None:
            vision = self.vision_mask.to(device=device, dtype=torch.bool)
            return _for_rows("vision_mask", vision, rows, length)
        if ids is None or not self.anatomy.vision_token_ids:
            raise ValueError(
                "cannot tell which tokens are vision tokens: pass input_ids or, for a prompt of inputs_embeds, "
                "vision_mask=... to the method."
            )
        return self.anatomy.is_vision(ids).to(device)

    def _prompt_length(self, ids: Tensor | None, length: int, cached: bool) -> tuple[int, bool]:
        """Return how many of the tokens are the prompt's, and whether this is a later step of a generation.

        ``generate`` appends its own tokens when it has no cache, and a draft when it checks one; a loop of the caller
        without cache is known by the prompt that it repeats.

        Raises
        ------
        ValueError
            If the pass has less than the prompt of ``generate``.
        """
        if self.generating is not None:
            if length < self.generating:
                raise ValueError(
                    f"generate() got a prompt of {self.generating} tokens and runs {length} of them: a method has to "
                    "see the prompt as a whole, so prefill_chunk_size and guidance_scale are not supported."
                )
            return self.generating, length > self.generating and not cached
        if ids is None or cached:
            self.uncached = None
            return length, False
        if self.uncached is not None:
            prompt, before = self.uncached
            if ids.shape == (prompt.shape[0], before + 1) and torch.equal(ids[:, : prompt.shape[1]], prompt):
                self.uncached = (prompt, length)
                return prompt.shape[1], True
        self.uncached = (ids, length)
        return length, False

    def _ends(self, valid: Tensor, vision: Tensor, prompt_length: int, labels: Tensor | None) -> Tensor | None:
        """Return the place after the last token of each row's prompt, None where no answer follows in any row.

        Raises
        ------
        ValueError
            If the caller's ``answer_mask`` is not the end of each row, or leaves no prompt.
        """
        rows, length = valid.shape
        if prompt_length < length:
            return torch.full((rows,), prompt_length, device=valid.device)
        if self.answer_mask is not None:
            answer = _for_rows("answer_mask", self.answer_mask.to(device=valid.device, dtype=torch.bool), rows, length)
        elif labels is not None and labels.shape == valid.shape:
            answer = (labels != -100).to(valid.device)
        else:
            return None
        answer = answer & valid
        begun = answer.cumsum(dim=1) > 0
        whole = ~begun & valid  # the prompt, if the answer is one
        right = (whole & ~vision).any(dim=1) & ~(begun & vision).any(dim=1)
        if self.answer_mask is None:
            begun = begun & right[:, None]  # labels of a whole conversation: no part of it is the answer
        elif not bool(right.all()) or bool((begun & valid & ~answer).any()):
            raise ValueError("answer_mask must be the last tokens of each row, after a prompt with all vision tokens.")
        return (~begun).sum(dim=1) if bool(begun.any()) else None

    def refuse_late_vision(self, ids: Tensor | None, past: int, queries: int) -> None:
        """Raise ``ValueError`` if vision tokens come after the prefill, in ``queries`` tokens behind ``past`` ones."""
        if ids is None or queries == 1:
            return
        given = None if self.generating is None else max(self.generating - past, 0)  # what follows is a draft
        if bool(self.anatomy.is_vision(ids[:, -queries:][:, :given]).any()):
            raise ValueError("vision tokens after the prefill (chunked prefill, a later turn) are not supported.")


def _for_rows(name: str, given: Tensor, rows: int, length: int) -> Tensor:
    """Repeat what a caller gave per prompt for beams or several answers per prompt; check its shape."""
    if rows != given.shape[0] and rows % given.shape[0] == 0:
        given = given.repeat_interleave(rows // given.shape[0], dim=0)
    if given.shape != (rows, length):
        raise ValueError(f"{name} has shape {tuple(given.shape)}, the prompt {(rows, length)}.")
    return given
