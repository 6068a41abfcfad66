r"""Questions about training scenes as conversations: ``python -m vtw_eval.shapes.making.gate_data --help``.

The format is LLaVA's.

The shipped gates, ``checkpoint/dyvte.safetensors``, were made from them, once through all 16,000 questions, by ::

    python -m vtw_eval.shapes.making.gate_data gate_data
    vtw-eval train-dyvte --model vtw_eval/shapes/checkpoint --data gate_data -o dyvte.safetensors \
        --inner 256 --batch-size 32 --lr 1e-3 --alpha 2

Other than in the paper: narrower gates, a higher learning rate for few steps, and a looser bound on the uncertainty.
This model's cross-entropy is next to nothing, so that the paper's 1.03 keeps the image where nothing depends on it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from vtw_eval.shapes.making.recipe import sample_questions
from vtw_eval.shapes.questions import prompt
from vtw_eval.shapes.scenes import render, sample_scene

SEED = 7
"""Seed of the scenes, apart from those of the recipe."""


def write_data(folder: Path, scenes: int, questions: int, seed: int = SEED) -> Path:
    """Write images and ``data.json``.

    Parameters
    ----------
    folder
        Where to; made if it is not there.
    scenes
        Number of images, all of training scenes.
    questions
        Questions per image, types as in the recipe.
    seed
        Seed of scenes and questions.

    Returns
    -------
    pathlib.Path
        The JSON file.
    """
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    entries = []
    for number in range(scenes):
        rng = np.random.default_rng([seed, number])
        scene = sample_scene(rng)
        name = f"{number:05d}.png"
        Image.fromarray(render(scene, rng)).save(images / name)
        for place, question in enumerate(sample_questions(scene, rng, questions)):
            entries.append(
                {
                    "id": f"{number:05d}-{place}",
                    "image": f"images/{name}",
                    "conversations": [
                        {"from": "human", "value": f"<image>\n{prompt(question)}"},
                        {"from": "gpt", "value": question.answer},
                    ],
                }
            )
    file = folder / "data.json"
    file.write_text(json.dumps(entries), encoding="utf-8")
    return file


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m vtw_eval.shapes.making.gate_data",
        description="Write images of training scenes and questions about them, for vtw-eval train-dyvte.",
        epilog="example: python -m vtw_eval.shapes.making.gate_data gate_data",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--scenes", type=int, default=4000, help="number of images")
    parser.add_argument("--questions", type=int, default=4, help="questions per image")
    options = parser.parse_args(arguments)
    print(write_data(options.folder, options.scenes, options.questions))


if __name__ == "__main__":
    main()
