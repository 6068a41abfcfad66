"""Locally made documents with the columns that lmms-eval's stock tasks read, so that they run without a network.

``datasets.load_dataset("lmms-lab-encoder/POPE")`` takes a relative folder of that name before it asks the Hub. So the
stock tasks run on this data from the data folder:

    python -m tests.support.harness_data DATA
    cd DATA && HF_HOME=$PWD/hf_home HF_HUB_OFFLINE=1 lmms_eval --tasks mme,pope,ai2d ...
"""

from __future__ import annotations

import argparse
import io
import json
import random
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

COLOURS = ("red", "green", "blue", "yellow")
SIZES = ((64, 64), (96, 56), (56, 112), (140, 84))
"""Widths and heights; different shapes give different numbers of vision tokens."""


def picture(seed: int) -> Image.Image:
    """Draw one coloured disc on noise."""
    rng = np.random.default_rng(seed)
    width, height = SIZES[seed % len(SIZES)]
    image = Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
    x, y = int(rng.integers(0, width // 2)), int(rng.integers(0, height // 2))
    ImageDraw.Draw(image).ellipse((x, y, x + width // 3, y + height // 3), fill=COLOURS[seed % len(COLOURS)])
    return image


def picture_bytes(seed: int) -> dict[str, Any]:
    """Return a picture as ``datasets`` stores it."""
    buffer = io.BytesIO()
    picture(seed).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def write_table(
    folder: Path, split: str, rows: Sequence[Mapping[str, Any]], images: Sequence[str], config: str = "default"
) -> None:
    """Write rows as parquet with a dataset card that names split, config and image columns."""
    from datasets import Dataset
    from datasets import Image as ImageFeature
    from datasets import List as ListFeature

    table = Dataset.from_list([dict(row) for row in rows])
    for column in images:
        several = isinstance(rows[0][column], list)
        table = table.cast_column(column, ListFeature(ImageFeature()) if several else ImageFeature())
    name = f"{config}-{split}.parquet" if config != "default" else f"{split}.parquet"
    (folder / "data").mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / "data" / name)
    card = f"---\nconfigs:\n- config_name: {config}\n  data_files:\n  - split: {split}\n    path: data/{name}\n---\n"
    (folder / "README.md").write_text(card)


def question(seed: int) -> str:
    """Return a question whose length depends on the seed."""
    rng = random.Random(seed)
    words = " ".join(rng.choice(("small", "big", "round", "bright", "dark")) for _ in range(rng.randrange(1, 9)))
    return f"Is there a {words} {rng.choice(COLOURS)} disc in the image?"


def make_mme(root: Path, pairs: int) -> None:
    """MME: a question with answer yes and one with answer no about each image."""
    rows = [
        {
            "question_id": f"{category}/{i:04d}.png",
            "image": picture_bytes(i),
            "question": f"{question(2 * i + j)} Please answer yes or no.",
            "answer": answer,
            "category": category,
        }
        for i in range(pairs)
        for category in (("existence", "code_reasoning")[i % 2],)
        for j, answer in enumerate(("Yes", "No"))
    ]
    write_table(root / "lmms-lab-encoder" / "MME", "test", rows, ["image"])


def make_pope(root: Path, count: int) -> None:
    """POPE: yes/no questions on the existence of objects."""
    rows = [
        {
            "id": str(i),
            "question_id": str(i),
            "question": question(100 + i),
            "answer": ("yes", "no")[i % 2],
            "image_source": f"COCO_{i}",
            "image": picture_bytes(100 + i),
            "category": ("adversarial", "popular", "random")[i % 3],
        }
        for i in range(count)
    ]
    write_table(root / "lmms-lab-encoder" / "POPE", "test", rows, ["image"])


def make_ai2d(root: Path, count: int) -> None:
    """AI2D: four options per diagram."""
    rows = [
        {
            "question": question(200 + i),
            "options": ["one", "two", "three", "four"],
            "answer": str(i % 4),
            "image": picture_bytes(200 + i),
        }
        for i in range(count)
    ]
    write_table(root / "lmms-lab-encoder" / "ai2d", "test", rows, ["image"])


def make_scienceqa(root: Path, count: int) -> None:
    """ScienceQA-IMG and, with every other image missing, ScienceQA-FULL: text-only documents."""
    for config, missing in (("ScienceQA-IMG", False), ("ScienceQA-FULL", True)):
        rows = [
            {
                "image": None if missing and i % 2 else picture_bytes(300 + i),
                "question": question(300 + i),
                "choices": ["yes", "no", "maybe"][: 2 + i % 2],
                "answer": i % 2,
                "hint": "A disc is round." if i % 2 else "",
                "lecture": "",
                "solution": "",
            }
            for i in range(count)
        ]
        write_table(root / "lmms-lab-encoder" / "ScienceQA", "test", rows, ["image"], config)
    cards = [
        f"- config_name: {config}\n  data_files:\n  - split: test\n    path: data/{config}-test.parquet\n"
        for config in ("ScienceQA-IMG", "ScienceQA-FULL")
    ]
    card = root / "lmms-lab-encoder" / "ScienceQA" / "README.md"
    card.write_text(f"---\nconfigs:\n{''.join(cards)}---\n")


def make_mmmu(root: Path, count: int) -> None:
    """MMMU: multiple-choice and open questions on one or two images, in between the text."""
    rows = []
    for i in range(count):
        row: dict[str, Any] = {
            "id": f"validation_Art_{i + 1}",
            "question": f"Compare <image 1> with <image 2>. {question(400 + i)}"
            if i % 2
            else f"<image 1> {question(i)}",
            "options": "[]" if i % 3 == 2 else str(["one", "two", "three", "four"]),
            "question_type": "open" if i % 3 == 2 else "multiple-choice",
            "answer": "2" if i % 3 == 2 else "B",
            "explanation": "",
            "topic_difficulty": "Easy",
            "subfield": "Drawing",
            "img_type": "['Paintings']",
        }
        for j in range(1, 8):
            row[f"image_{j}"] = picture_bytes(400 + 10 * i + j) if j <= 1 + i % 2 else None
        rows.append(row)
    images = [f"image_{j}" for j in range(1, 8)]
    write_table(root / "lmms-lab-encoder" / "MMMU", "validation", rows, images)


def write_video(path: Path, seed: int, frames: int = 24) -> None:
    """Write an MPEG-4 video of noise that slowly changes colour."""
    import av

    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        base = rng.integers(0, 128, (48, 64, 3))
        for i in range(frames):
            picture = np.clip(base + np.array([5 * i, seed * 20 % 120, 120 - 5 * i]), 0, 255).astype(np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def make_videomme(root: Path, count: int) -> None:
    """Video-MME, with its videos where the task looks for downloads: in ``hf_home/videomme/data``."""
    rows = []
    for i in range(count):
        write_video(root / "hf_home" / "videomme" / "data" / f"video{i}.mp4", seed=i)
        rows.append(
            {
                "video_id": f"{i:03d}",
                "duration": ("short", "medium", "long")[i % 3],
                "domain": "Knowledge",
                "sub_category": "Humanity & History",
                "url": "",
                "videoID": f"video{i}",
                "question_id": f"{i:03d}-1",
                "task_type": "Counting Problem",
                "question": question(500 + i),
                "options": ["A. one.", "B. two.", "C. three.", "D. four."],
                "answer": "ABCD"[i % 4],
            }
        )
    write_table(root / "lmms-eval" / "Video-MME", "test", rows, [])
    with zipfile.ZipFile(root / "lmms-eval" / "Video-MME" / "videos_chunked_01.zip", "w") as archive:
        for i in range(count):
            archive.write(root / "hf_home" / "videomme" / "data" / f"video{i}.mp4", f"data/video{i}.mp4")


def make_mmbench(root: Path, count: int) -> None:
    """MMBench: each question with its options in two orders, as circular evaluation has them."""
    rows = [
        {
            "index": i + 1_000_000 * turn,
            "question": question(600 + i),
            "hint": "nan" if i % 2 else "A disc is round.",
            "answer": "AB"[(i + turn) % 2],
            "A": ("yes", "no")[turn],
            "B": ("no", "yes")[turn],
            "C": "nan",
            "D": "nan",
            "category": "object_localization",
            "L2-category": "finegrained_perception (instance-level)",
            "image": picture_bytes(600 + i),
            "source": "made",
            "split": "dev",
        }
        for i in range(count)
        for turn in range(2)
    ]
    write_table(root / "lmms-lab-encoder" / "MMBench", "dev", rows, ["image"], "en")


def make_seedbench(root: Path, count: int) -> None:
    """SEED-Bench: questions on an image, and on the frames of a video."""
    rows = [
        {
            "question": question(700 + i),
            "question_id": str(i),
            "answer": "ABCD"[i % 4],
            **{f"choice_{letter}": word for letter, word in zip("abcd", ("one", "two", "three", "four"), strict=True)},
            "data_type": ("image", "video")[i % 2],
            "image": [picture_bytes(700 + 10 * i + j) for j in range(1 + i % 2)],
        }
        for i in range(count)
    ]
    write_table(root / "lmms-lab-encoder" / "SEED-Bench", "test", rows, ["image"])


def make_mmvet(root: Path, count: int) -> None:
    """MM-Vet: open questions for a judge."""
    rows = [
        {
            "question_id": f"v1_{i}",
            "image": picture_bytes(800 + i),
            "question": question(800 + i),
            "answer": "yes<OR>a disc",
            "image_source": "made",
            "capability": ("rec", "rec,ocr")[i % 2],
        }
        for i in range(count)
    ]
    write_table(root / "lmms-lab-encoder" / "MMVet", "test", rows, ["image"])


def make_gqa(root: Path, count: int) -> None:
    """GQA: questions, and apart from them images that several share."""
    folder = root / "lmms-lab-encoder" / "GQA"
    questions = [
        {
            "id": str(i),
            "imageId": f"n{i // 2}",
            "question": question(900 + i),
            "answer": ("yes", "no")[i % 2],
            "fullAnswer": "Yes, there is.",
        }
        for i in range(count)
    ]
    images = [{"id": f"n{i}", "image": picture_bytes(900 + i)} for i in range((count + 1) // 2)]
    tables = {"testdev_balanced_instructions": (questions, []), "testdev_balanced_images": (images, ["image"])}
    for config, (rows, columns) in tables.items():
        write_table(folder, "testdev", rows, columns, config)
    cards = [
        f"- config_name: {config}\n  data_files:\n  - split: testdev\n    path: data/{config}-testdev.parquet\n"
        for config in tables
    ]
    (folder / "README.md").write_text(f"---\nconfigs:\n{''.join(cards)}---\n")


def make_vqav2(root: Path, count: int) -> None:
    """VQAv2: ten people's answers."""
    rows = [
        {
            "question_id": i,
            "image": picture_bytes(1000 + i),
            "question": question(1000 + i),
            "question_type": "is there a",
            "multiple_choice_answer": "yes",
            "answers": [
                {"answer": ("yes", "no")[j % 3 == 0], "answer_confidence": "yes", "answer_id": j} for j in range(10)
            ],
            "answer_type": "yes/no",
            "image_id": i,
        }
        for i in range(count)
    ]
    write_table(root / "lmms-lab-encoder" / "VQAv2", "validation", rows, ["image"])


def make_textvqa(root: Path, count: int) -> None:
    """TextVQA: ten people's answers and the words that a reader found."""
    rows = [
        {
            "question_id": i,
            "image": picture_bytes(1100 + i),
            "question": question(1100 + i),
            "answers": ["red"] * 6 + ["blue"] * 4,
            "ocr_tokens": ["red", "disc"],
        }
        for i in range(count)
    ]
    write_table(root / "lmms-lab-encoder" / "textvqa", "validation", rows, ["image"])


def write_gif(path: Path, seed: int, frames: int = 9) -> None:
    """Write an animated GIF in which a disc moves over noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ground = picture(seed)
    shown = []
    for i in range(frames):
        frame = ground.copy()
        ImageDraw.Draw(frame).ellipse((4 * i, 4, 4 * i + 12, 16), fill=COLOURS[seed % len(COLOURS)])
        shown.append(frame)
    shown[0].save(path, save_all=True, append_images=shown[1:], duration=[80 + 20 * (i % 3) for i in range(frames)])


TGIF_ANSWERS = ("cat", "two", "red", "room")
"""A thing, a number, a colour, a place."""


def make_tgif(root: Path, count: int, layout: str = "videollava") -> None:
    """TGIF-QA's frame questions, two to a video: as Video-LLaVA spreads them, or in the official form with GIFs."""
    folder = root / "acme" / "TGIF-QA"
    rows = [
        {
            "question_id": f"FRAMEQA{i}",
            "video_name": f"tumblr_{i // 2}",
            "question": f"what is number {i} in the picture ?",
            "answer": TGIF_ANSWERS[i % 4],
            "type": str(i % 4),
        }
        for i in range(count)
    ]
    names = sorted({row["video_name"] for row in rows})
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "videollava":
        asked = [{key: value for key, value in row.items() if key not in ("answer", "type")} for row in rows]
        told = [{key: row[key] for key in ("answer", "question_id", "type")} for row in rows]
        (folder / "test_q.json").write_text(json.dumps(asked))
        (folder / "test_a.json").write_text(json.dumps(told))
        for seed, name in enumerate(names):
            if seed % 2:
                write_gif(folder / "gif" / f"{name}.gif", seed)
            else:
                write_video(folder / "mp4" / f"{name}.mp4", seed)
        return
    lines = ["gif_name\tquestion\tanswer\ttype\tvid_id\tkey\tdescription"]
    lines += [
        "\t".join((row["video_name"], row["question"], row["answer"], row["type"], row["question_id"], "27138", "-"))
        for row in rows
    ]
    (folder / "Test_frameqa_question.csv").write_text("\n".join(lines) + "\n")
    for seed, name in enumerate(names):
        write_gif(folder / "gifs" / f"{name}.gif", seed)


MAKERS: Mapping[str, Callable[[Path, int], None]] = {
    "mme": make_mme,
    "pope": make_pope,
    "ai2d": make_ai2d,
    "scienceqa": make_scienceqa,
    "mmmu": make_mmmu,
    "videomme": make_videomme,
    "mmbench": make_mmbench,
    "seedbench": make_seedbench,
    "mmvet": make_mmvet,
    "gqa": make_gqa,
    "vqav2": make_vqav2,
    "textvqa": make_textvqa,
    "tgif": make_tgif,
}


def make_data(root: Path, count: int = 6) -> Path:
    """Write ``count`` documents (for MME, pairs of documents) of every task, and return the folder."""
    for make in MAKERS.values():
        make(root, count)
    (root / "hf_home").mkdir(exist_ok=True)
    return root


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=6, help="documents per task (default 6)")
    arguments = parser.parse_args()
    print(make_data(arguments.folder, arguments.count))


if __name__ == "__main__":
    main()
