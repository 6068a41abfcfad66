"""Our datasets for VLMEvalKit: TGIF-QA, which it lacks, and the shapes test sets."""

from __future__ import annotations


def register_kit_datasets() -> None:
    """Put our datasets into VLMEvalKit's tables, so that its ``run`` finds them; calling it again changes nothing.

    They can then be named after ``--data`` and, by class, in a ``--config`` file.
    """
    import vlmeval.dataset as kit
    from vlmeval.dataset.video_dataset_config import supported_video_datasets

    from vtw_eval.tasks.kit_shapes import SHAPES_DATASETS
    from vtw_eval.tasks.kit_tgif import TGIF_VARIANTS, TGIFQA

    for cls in (*SHAPES_DATASETS, TGIFQA):
        setattr(kit, cls.__name__, cls)
        if cls not in kit.DATASET_CLASSES:
            kit.DATASET_CLASSES.append(cls)
            kit.SUPPORTED_DATASETS.extend(cls.supported_datasets())
    supported_video_datasets.update(TGIF_VARIANTS)
