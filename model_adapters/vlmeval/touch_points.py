"""What is relied on in VLMEvalKit without its promise, each with what checks it."""

from __future__ import annotations

import inspect
import tempfile
from pathlib import Path
from typing import Any

from vtw_eval.verify.touch_guards import expect
from vtw_eval.verify.touch_points import TouchPoint


def has_patched() -> None:
    """Check that VLMEvalKit has the functions that are replaced, with their parameters."""
    from vtw_eval.model_adapters.vlmeval.patches import VLMEVALKIT

    for patch in VLMEVALKIT.values():
        patch.place()


def shows_pictures() -> None:
    """Check that VLMEvalKit hands the pictures of a table to a model through what is replaced."""
    from vlmeval.dataset.image_base import ImageBaseDataset
    from vlmeval.inference import infer_data

    missing = {"set_dump_image", "dump_image", "build_prompt"} - set(infer_data.__code__.co_names)
    expect(not missing, f"vlmeval.inference.infer_data does not call {', '.join(sorted(missing))}", "ms-vlmeval")
    for name in ("dump_image", "build_prompt"):
        expect(callable(getattr(ImageBaseDataset, name, None)), f"its datasets have no {name}", "ms-vlmeval")


def reads_tables() -> None:
    """Check that VLMEvalKit reads tables with the functions that are replaced to compare them with their files."""
    from vlmeval.smp import load

    from vtw_eval.tasks.kit_tables import intercept_tables

    seen: list[Path] = []

    def note(frame: Any, file: Path) -> Any:
        seen.append(file)
        return frame

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "table.tsv"
        file.write_text("index\tA\n0\tNone\n")
        with intercept_tables(note):
            frame = load(str(file))
    expect(seen == [file], "vlmeval.smp.load does not read tables with the module's own pandas", "ms-vlmeval")
    expect(len(frame) == 1, "vlmeval.smp.load does not return the rows of a table", "ms-vlmeval")


def draws_guesses() -> None:
    """Check that VLMEvalKit draws the option of an answer that it cannot read from what is replaced."""
    from vtw_eval.model_adapters.vlmeval.patches import VLMEVALKIT
    from vtw_eval.model_adapters.vlmeval.scoring import GUESSING

    for reader, draw in GUESSING.items():
        owner, function = VLMEVALKIT[reader].place()
        used = inspect.unwrap(getattr(owner, function)).__code__.co_names
        generator = VLMEVALKIT[draw].attribute
        expect(generator in used, f"{VLMEVALKIT[reader].name} does not draw from {generator}", "ms-vlmeval")


def words_questions() -> None:
    """Check that VLMEvalKit's class for InternVL words questions, and counts tiles, without its model."""
    from vtw_eval.model_adapters.vlmeval.prompts.internvl import InternVLWords, most_tiles

    row = {"question": "Which?", "A": "one", "B": "two"}
    for dataset in ("AI2D_TEST", "MME", "OCRBench"):
        words = InternVLWords(images=["i.png"])
        text, image = words.build_prompt(row, dataset)
        right = words.use_custom_prompt(dataset) and "Which?" in text["value"] and image["value"] == "i.png"
        expect(right, f"InternVLChat.build_prompt does not show question and image of {dataset}", "ms-vlmeval")
    expect(most_tiles("MME", 1) > 0, "InternVLChat.set_max_num sets no number of tiles", "ms-vlmeval")


def looks_up_tables() -> None:
    """Check that VLMEvalKit looks models and datasets up in the tables that ours are put into."""
    import vlmeval.dataset as datasets
    from vlmeval import config, inference, inference_video, run
    from vlmeval.dataset.video_dataset_config import supported_video_datasets

    for module in (run, inference, inference_video):
        same = getattr(module, "supported_VLM", None) is config.supported_VLM
        expect(same, f"{module.__name__} does not use vlmeval.config.supported_VLM", "ms-vlmeval")
    seen = inspect.unwrap(datasets.build_dataset).__globals__
    for name, table in (
        ("DATASET_CLASSES", datasets.DATASET_CLASSES),
        ("supported_video_datasets", supported_video_datasets),
    ):
        expect(seen.get(name) is table, f"build_dataset of VLMEvalKit does not use {name}", "ms-vlmeval")
    expect(isinstance(datasets.DATASET_CLASSES, list), "DATASET_CLASSES of VLMEvalKit is no list", "ms-vlmeval")


TOUCH_POINTS: tuple[TouchPoint, ...] = (
    TouchPoint(
        "ms-vlmeval",
        "functions that are replaced",
        "model_adapters/vlmeval/patches.py",
        "VLMEVALKIT",
        "answers of earlier runs would be taken, limits ignored, judges asked",
        has_patched,
    ),
    TouchPoint(
        "ms-vlmeval",
        "replaced functions are called",
        "model_adapters/vlmeval/session.py",
        "def check(",
        "answers of earlier runs would be taken, limits ignored, judges asked",
        "vtw_eval.model_adapters.vlmeval.session.Session.check",
    ),
    TouchPoint(
        "ms-vlmeval",
        "names of unfinished answers",
        "model_adapters/vlmeval/files.py",
        "def is_part(",
        "answers of an interrupted run would be taken for a later one's",
        "vtw_eval.model_adapters.vlmeval.files.check_part",
    ),
    TouchPoint(
        "ms-vlmeval",
        "pictures of its tables",
        "model_adapters/vlmeval/pictures.py",
        "dump_image",
        "pictures would be shown otherwise than a viewer shows them, without a word",
        shows_pictures,
    ),
    TouchPoint(
        "ms-vlmeval",
        "its class for InternVL without a model",
        "model_adapters/vlmeval/prompts/internvl.py",
        "_use_custom_prompt",
        "questions could not be worded as the kit words them",
        words_questions,
    ),
    TouchPoint(
        "ms-vlmeval",
        "its table of models",
        "model_adapters/vlmeval/registry.py",
        "supported_VLM",
        "our models would not be found, or made with other arguments",
        looks_up_tables,
    ),
    TouchPoint(
        "ms-vlmeval",
        "its tables of datasets",
        "tasks/kit.py",
        "DATASET_CLASSES",
        "our datasets would not be found",
        looks_up_tables,
    ),
    TouchPoint(
        "ms-vlmeval",
        "how it reads tables",
        "tasks/kit_tables.py",
        "vlmeval.smp.file.pd",
        "texts that its tables change would not be counted, and changed with media=upright too",
        reads_tables,
    ),
    TouchPoint(
        "ms-vlmeval",
        "what it draws guessed options from",
        "model_adapters/vlmeval/scoring.py",
        "GUESSING",
        "equal answers would be right with one method and wrong with another",
        draws_guesses,
    ),
)
"""See :data:`vtw_eval.verify.touch_points.TOUCH_POINTS`."""
