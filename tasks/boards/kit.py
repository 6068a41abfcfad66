"""The boards test sets as VLMEvalKit datasets, in the forms of the shapes ones."""

from __future__ import annotations

from typing import ClassVar

from vtw_eval.shapes.boards import data
from vtw_eval.tasks.shapes.kit import ImageData, ShapesAI2D, ShapesCaption, ShapesMME, ShapesPOPE, ShapesVQA, Source


class _Boards:
    """Mixed into a dataset of shapes to ask about boards."""

    SOURCE: ClassVar[Source] = Source(data.TEST_SETS, data.fingerprint)


class BoardsMME(_Boards, ShapesMME):
    """MME's form; the kit's MME score over existence, count, color, position and OCR, at most 1,000."""

    NAME = "Boards_MME"


class BoardsPOPE(_Boards, ShapesPOPE):
    """POPE's form; the kit's POPE score: F1 of "yes", 0 to 1, under ``Overall``."""

    NAME = "Boards_POPE"


class BoardsAI2D(_Boards, ShapesAI2D):
    """AI2D's form; the kit's accuracy over multiple-choice questions, 0 to 1."""

    NAME = "Boards_AI2D"


class BoardsVQA(_Boards, ShapesVQA):
    """One-word answers; share of exact matches, 0 to 1, together and by category."""

    NAME = "Boards_VQA"


class BoardsGQA(BoardsVQA):
    """One-word answers to questions of two steps, scored as those of one."""

    NAME = "Boards_GQA"
    TEST_SET = "gqa"


class BoardsCaption(_Boards, ShapesCaption):
    """Captions; share of exact matches and mean F1 of the named objects, 0 to 1."""

    NAME = "Boards_Caption"


BOARDS_DATASETS: tuple[type[ImageData], ...] = (
    BoardsMME,
    BoardsPOPE,
    BoardsAI2D,
    BoardsVQA,
    BoardsGQA,
    BoardsCaption,
)
"""The datasets of this module."""
