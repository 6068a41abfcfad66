"""Loads in the shape of benchmarks: so many questions about each image, as documents and requests of lmms-eval."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Load:
    """The shape of a benchmark."""

    questions: int
    """About each image."""
    images: int
    """Images of a round."""
    words: int
    """Of a question on average, beside what all of them say."""


LOADS = {"pope": Load(18, 1, 10), "gqa": Load(30, 1, 14), "ai2d": Load(4, 4, 50), "mme": Load(2, 8, 15)}
"""With the words that all questions have, about as many tokens as those of the benchmarks have."""

SAID = "Is there a {} disc? Answer yes or no."
WORDS = ["red", "green", "blue", "round", "square", "small", "big", "bright", "dark", "left", "right", "near", "far"]


def make_documents(load: Load, images: int, seed: int = 0) -> datasets.Dataset:
    """Make documents of JPEGs of 640x480 and questions of random words, those about an image together."""
    rng, pixels = random.Random(seed), np.random.default_rng(seed)
    rows = []
    for _ in range(images):
        coarse = Image.fromarray(pixels.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG")
        for _ in range(load.questions):
            count = rng.randrange(load.words // 2, 3 * load.words // 2)
            text = " ".join(rng.choice(WORDS) for _ in range(count))
            rows.append({"image": {"bytes": file.getvalue(), "path": None}, "question": SAID.format(text)})
    features = datasets.Features({"image": datasets.Image(), "question": datasets.Value("string")})
    return datasets.Dataset.from_list(rows, features=features)


def requests_of(documents: Sequence[int], new_tokens: int, texts: Sequence[str], *, simple: bool) -> list[Any]:
    """Return lmms-eval's requests for documents.

    Parameters
    ----------
    documents
        Their numbers.
    new_tokens
        Most tokens of an answer.
    texts
        Questions of all documents.
    simple
        Whether for lmms-eval's simple protocol, in place of that of chats.
    """
    from lmms_eval.api.instance import Instance

    def messages(document: dict[str, Any]) -> list[dict[str, Any]]:
        shown = [{"type": "image", "url": document["image"]}, {"type": "text", "text": document["question"]}]
        return [{"role": "user", "content": shown}]

    def visuals(document: dict[str, Any]) -> list[Any]:
        return [document["image"].convert("RGB")]

    def arguments(i: int) -> tuple[Any, ...]:
        generation = {"max_new_tokens": new_tokens, "temperature": 0}
        if simple:
            return texts[i], generation, visuals, i, "load", "test"
        return texts[i], messages, generation, i, "load", "test"

    return [
        Instance(
            request_type="generate_until",
            arguments=arguments(i),
            idx=0,
            metadata={"task": "load", "doc_id": i, "repeats": 1},
        )
        for i in documents
    ]
