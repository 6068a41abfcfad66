"""Questions behind what their prompts begin with: how many go into a pass, and which of them into a row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from vtw_eval.engine.masks import MaskKind
from vtw_eval.engine.packed import answer_packed
from vtw_eval.engine.prefix import Prefix, generate_behind
from vtw_eval.models.batching import run_in_batches
from vtw_eval.models.sharing import Split, stop_ids

PASS_TOKENS = 1024
"""About as many tokens of questions about an image go into a pass."""

ROW_TOKENS = 256
"""About as many of them, or half as many as their prefix has if that is more, go into a row.

In a row each token is compared with those of all questions in it, for nothing; but each row holds the prefix anew.
"""


@dataclass(frozen=True)
class Continuation:
    """Answers questions behind prefixes, as many at a time as fit in memory.

    Parameters
    ----------
    model
        The model, with the method of the prefixes installed.
    arguments
        Of ``generate``: greedy decoding with a KV cache.
    kind
        Which masks the model's attention takes where questions can be told apart in one row; None where each needs a
        row of its own.
    limit
        Most questions about an image in a pass, None for as many as may fit.
    on_fewer
        Told how many questions about an image go on when memory has run out.
    """

    model: Any
    arguments: Mapping[str, Any]
    kind: MaskKind | None
    limit: int | None
    on_fewer: Callable[[int], None]

    def answers(self, prefix: Prefix, splits: Sequence[Split]) -> list[list[Tensor]]:
        """Return new tokens of each question about each image, long ``[new]`` on the CPU.

        Parameters
        ----------
        prefix
            What has been run, a row for each image.
        splits
            The prompts about each image.
        """
        most = max(len(each.own) for each in splits)
        questions = 1 if self.kind is None else at_once(splits)
        process = partial(self._expanded if self.kind is None else self._packed, prefix, splits)
        found = run_in_batches(range(most), min(questions, self.limit or most), process, self.on_fewer)
        tokens: list[list[Tensor]] = [[] for _ in splits]
        for by_image in found:
            for image, new in by_image.items():
                tokens[image].append(new.cpu())
        return tokens

    def _packed(self, prefix: Prefix, splits: Sequence[Split], numbers: Sequence[int]) -> list[dict[int, Tensor]]:
        """Answer the questions of some numbers about all images, several about one image in a row."""
        rows: list[tuple[int, list[int]]] = []
        for image, each in enumerate(splits):
            asked = [number for number in numbers if number < len(each.own)]
            lengths = [len(each.own[number]) for number in asked]
            parts = divided(lengths, max(ROW_TOKENS, prefix.length // 2))
            rows += [(image, [asked[place] for place in part]) for part in parts]
        own = [[splits[image].own[number] for number in part] for image, part in rows]
        ends, pad = stop_ids(self.arguments)
        new = int(self.arguments["max_new_tokens"])
        assert self.kind is not None
        made = answer_packed(
            self.model,
            prefix,
            [image for image, _ in rows],
            own,
            kind=self.kind,
            max_new_tokens=new,
            eos=ends,
            pad=pad,
        )
        found: dict[int, dict[int, Tensor]] = {number: {} for number in numbers}
        for (image, part), answers in zip(rows, made, strict=True):
            for number, answer in zip(part, answers, strict=True):
                found[number][image] = answer
        return list(found.values())

    def _expanded(self, prefix: Prefix, splits: Sequence[Split], numbers: Sequence[int]) -> list[dict[int, Tensor]]:
        """Answer the questions of some numbers about all images, each in a row of its own."""
        asked = [(number, i) for number in numbers for i, each in enumerate(splits) if number < len(each.own)]
        own = [splits[image].own[number] for number, image in asked]
        made = generate_behind(self.model, prefix, [image for _, image in asked], own, self.arguments)
        found: dict[int, dict[int, Tensor]] = {number: {} for number in numbers}
        for (number, image), answer in zip(asked, made, strict=True):
            found[number][image] = answer
        return list(found.values())


def at_once(splits: Sequence[Split]) -> int:
    """Return how many questions about each image go into a pass, so that all passes hold as many."""
    passes = math.ceil(max(sum(map(len, each.own)) for each in splits) / PASS_TOKENS)
    return math.ceil(max(len(each.own) for each in splits) / passes)


def divided(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Divide questions into rows that are about as long as each other, with as many questions each.

    Parameters
    ----------
    lengths
        Tokens of each question.
    tokens
        Of a row, about.

    Returns
    -------
    list of list of int
        Of each row: numbers of its questions, one or more.
    """
    count = min(math.ceil(sum(lengths) / tokens), len(lengths))
    rows: list[list[int]] = [[] for _ in range(count)]
    most = math.ceil(len(lengths) / max(count, 1))
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        shortest = min((row for row in rows if len(row) < most), key=lambda row: sum(lengths[i] for i in row))
        shortest.append(number)
    return rows
