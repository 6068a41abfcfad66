"""Our datasets for VLMEvalKit: TGIF-QA, which it lacks, and the test sets of shapes, boards and moves."""

from __future__ import annotations

from typing import Any


def register_kit_datasets() -> None:
    """Put our datasets into VLMEvalKit's tables, so that its ``run`` finds them; calling it again changes nothing.

    They can then be named after ``--data`` and, by class, in a ``--config`` file.
    """
    import vlmeval.dataset as kit
    from vlmeval.dataset.video_dataset_config import supported_video_datasets

    from vtw_eval.tasks.boards.kit import BOARDS_DATASETS
    from vtw_eval.tasks.moves.kit import MOVES_DATASETS, MOVES_VARIANTS
    from vtw_eval.tasks.shapes.kit import SHAPES_DATASETS
    from vtw_eval.tasks.tgif.kit import TGIF_VARIANTS, TGIFQA

    ours: list[Any] = [*SHAPES_DATASETS, *BOARDS_DATASETS, *MOVES_DATASETS, TGIFQA]
    for cls in ours:
        setattr(kit, cls.__name__, cls)
        if cls not in kit.DATASET_CLASSES:
            kit.DATASET_CLASSES.append(cls)
            kit.SUPPORTED_DATASETS.extend(cls.supported_datasets())
    supported_video_datasets.update({**TGIF_VARIANTS, **MOVES_VARIANTS})
