"""InternVL, prompted as VLMEvalKit's ``InternVLChat`` (version V2.0) does.

The kit knows the checkpoints with remote code only. Those in transformers format get the same texts, images and tiles
through their own chat template.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from vtw_eval.model_adapters.vlmeval.prompts.base import (
    KitFamily,
    KitOptions,
    KitPrompt,
    Question,
    Row,
    dataset_type,
    direct_choice,
)
from vtw_eval.models.family import Encoded, Prompt, all_images
from vtw_eval.models.internvl import InternVL, InternVLOptions, middles
from vtw_eval.models.internvl_remote import MARK, InternVLRemote
from vtw_eval.models.video import Clip, notes_on, read_clip

TILES: Mapping[int, tuple[str, ...]] = {
    12: ("ChartQA_TEST", "MMMU_DEV_VAL", "MMMU_TEST", "MME-RealWorld", "VCR_EN", "VCR_ZH", "OCRVQA", "BMMR"),
    18: ("DocVQA_VAL", "DocVQA_TEST", "DUDE", "MMLongBench_DOC", "SLIDEVQA"),
    24: ("InfoVQA_VAL", "InfoVQA_TEST", "OCRBench", "HRBench4K", "HRBench8K"),
}
"""Most tiles per image, and the parts of the names of the datasets that get them; six for the others."""

ALL_TILES = 64
"""Most tiles of all images of a question."""

DATASET_WORDED = (
    *("MMDU", "MME-RealWorld", "WeMath_COT", "MMAlignBench", "ChartQAPro", "ChartMuseum"),
    *("MMSIVideo_U50", "MMSIVideo_SC", "SSI_Bench"),
)
"""Parts of the names of image datasets that keep their own prompt."""

QUESTION_ONLY = (
    *("MathVerse", "MathVista", "MathVision", "VCR", "MTVQA", "MMVet", "MMDU", "CRPE", "MIA-Bench", "MM-Math"),
    *("DynaMath", "QSpatial", "WeMath", "LogicVista", "MM-IFEval", "ChartMimic", "MMReason"),
)
"""Parts of the names of open datasets whose questions get no hint at the form of the answer."""

SINGLE_WORD = "Answer the question using a single word or phrase."


@dataclass(frozen=True, kw_only=True)
class InternVLKitOptions(KitOptions, InternVLOptions):
    """Options of ``internvl_vtw`` under VLMEvalKit.

    Parameters
    ----------
    max_patches
        Most tiles of an image. ``None``: 6, 12, 18 or 24 by dataset, as in the kit.
    num_frames
        Frames of a video that is given as a file; the kit itself shows frames.
    use_custom_prompt
        Word questions as the kit's class does instead of as its datasets do.
    """

    use_custom_prompt: bool = True


def most_tiles(dataset: str | None, images: int) -> int:
    """Return the largest number of tiles per image of a question."""
    name = dataset or ""
    of_each = next((most for most, parts in TILES.items() if any(part in name for part in parts)), 6)
    return max(1, min(of_each, ALL_TILES // max(1, images)))


def marked_text(question: Question) -> str:
    """Return the texts with a mark for each image: before them, numbered where there are several."""
    texts = question.values("text")
    count = len(question.values("image"))
    if count == 1:
        text = "<image>\n" + "\n".join(texts)
    else:
        text, shown = "", 0
        for part in question.parts:
            shown += part["type"] == "image"
            text += part["value"] if part["type"] == "text" else f"<Image-{shown}>"
        marks = "".join(f"<Image-{i}>" for i in range(1, count + 1))
        text = "".join(f"Image-{i}: <image>\n" for i in range(1, count + 1)) + text
        text = text.replace(marks, "") if marks else text
    return of_frames(text, question.dataset) if question.of_video else text


def of_frames(text: str, dataset: str | None) -> str:
    """Reword a prompt whose images are frames of a video."""
    for start in range(1, 65, 8):
        text = text.replace("".join(f"<Image-{i}>" for i in range(start, start + 8)), "")
    text = re.sub(r"Image-(?=[1-9])", "Frame-", text)
    name = dataset or ""
    if "MMBench-Video" in name:
        return text.replace("\nAnswer:", "")
    if "Video-MME" in name or "WorldSense" in name:
        return text.replace("\nAnswer:", "") + "\nAnswer with the option's letter from the given choices directly."
    return text.replace("Best option:(", "") if "MVBench" in name else text


class InternVLPrompts(KitFamily):
    """What both kinds of InternVL checkpoints share."""

    longest_answer = 4096
    options: InternVLKitOptions

    def has_own_prompt(self, dataset: str) -> bool:
        """All image datasets but a few, and but those about screens, whose prompts need the kit's templates."""
        if not self.options.use_custom_prompt or any(part in dataset for part in DATASET_WORDED):
            return False
        kind = dataset_type(dataset)
        return kind != "GUI" and not (kind == "MCQ" and "LEGO" in dataset) and not Question([], dataset).of_video

    def own_prompt(self, row: Row, dataset: str, images: Sequence[str]) -> list[dict[str, str]]:
        """Put the question, with its options or the form of its answer, before the images."""
        text = [{"type": "text", "value": self._words(row, dataset)}]
        return [*text, *({"type": "image", "value": image} for image in images)]

    def _words(self, row: Row, dataset: str) -> str:
        kind, question = dataset_type(dataset), str(row["question"])
        if kind == "MCQ":
            return direct_choice(row)
        if kind == "Y/N":
            if "MME" in dataset:
                return f"{question} {SINGLE_WORD}"
            yes_or_no = any(part in dataset for part in ("HallusionBench", "AMBER"))
            return f"{question} Please answer yes or no. {SINGLE_WORD}" if yes_or_no else question
        if kind != "VQA":
            return question
        if any(part in dataset for part in ("LLaVABench", "WildVision")):
            return f"{question}\nAnswer this question in detail."
        if "MathVerse" in dataset:
            question = question.replace("please directly answer the question and", "please")
        return question if any(part in dataset for part in QUESTION_ONLY) else f"{question}\n{SINGLE_WORD}"

    def kit_prompt(self, question: Question) -> KitPrompt:
        """Return texts, images and the most tiles for each; a video's file becomes frames, one tile each."""
        question, clips = self._framed(question)
        shown, notes = self.pictures(question)
        frames = [Image.fromarray(frame) for clip in clips for frame in clip.frames]
        images = [*shown, *frames]
        dataset = question.dataset or ""
        if images and "MMMU" in dataset:
            first = images[0]
            images[0] = first.resize((2 * first.width, 2 * first.height), Image.Resampling.BILINEAR)
        of_video = bool(frames) or question.of_video
        tiles = 1 if of_video else self.options.max_patches or most_tiles(dataset, len(images))
        return KitPrompt(
            self.text_of(marked_text(question), len(images)),
            tuple(images),
            notes=(*notes, *notes_on([clips])[0]),
            tiles=tiles,
        )

    def _framed(self, question: Question) -> tuple[Question, list[Clip]]:
        """Replace a video by image parts without a path, and return it."""
        if not (videos := question.values("video")):
            return question, []
        if len(videos) > 1 or question.values("image"):
            raise ValueError("InternVL takes one video per question, and no images beside it.")
        count = self.options.num_frames
        clip = read_clip(videos[0], lambda total, _: middles(count, total))
        parts: list[Mapping[str, str]] = []
        for part in question.parts:
            parts += [{"type": "image", "value": ""}] * count if part["type"] == "video" else [part]
        return Question(parts, question.dataset), [clip]

    def text_of(self, marked: str, count: int) -> str:
        """Return the whole prompt for a text with image marks; behind as many as there are images they are words."""
        raise NotImplementedError


class InternVLKit(InternVLPrompts, InternVL):
    """The ``-hf`` checkpoints under VLMEvalKit."""

    options: InternVLKitOptions

    def text_of(self, marked: str, count: int) -> str:
        """Render pieces of text and images; the template itself ends a line after an image."""
        first, *others = marked.split("<image>", count) if count else [marked]
        content = [{"type": "text", "text": first}] if first else []
        for piece in others:
            content += [{"type": "image"}, {"type": "text", "text": piece.removeprefix("\n")}]
        return self.render([{"role": "user", "content": content}])

    def encode(self, prompts: Sequence[Prompt]) -> Encoded:
        """Encode one prompt with its images in tiles."""
        media: dict[str, Any] = {}
        if images := all_images(prompts):
            (prompt,) = prompts
            high = prompt.tiles if isinstance(prompt, KitPrompt) else 6
            media = {"images": images, "min_patches": self.options.min_patches, "max_patches": high}
        return self.process(prompts, **media)

    def decode(self, tokens: Tensor, generation: Mapping[str, Any]) -> list[str]:
        """Decode and strip, as the remote code does."""
        return [answer.strip() for answer in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]


class InternVLRemoteKit(InternVLPrompts, InternVLRemote):
    """The checkpoints with remote code under VLMEvalKit."""

    options: InternVLKitOptions

    @property
    def stop_ids(self) -> dict[str, Any]:
        """The end of a turn, as in the remote code's ``chat``."""
        return super(KitFamily, self).stop_ids

    def text_of(self, marked: str, count: int) -> str:
        """Fill in the checkpoint's conversation template."""
        text = marked.replace("<image>", MARK, count)
        return self.render([{"role": "user", "content": [{"type": "text", "text": text}]}])

    def most_tiles(self, prompt: Prompt) -> int:
        """As the prompt says."""
        return prompt.tiles if isinstance(prompt, KitPrompt) else super().most_tiles(prompt)

    def generation(self, generation: Mapping[str, Any]) -> dict[str, Any]:
        """Greedy, at most 4096 tokens; the remote code always decodes with a cache."""
        arguments = super().generation(generation)
        return {name: value for name, value in arguments.items() if name != "use_cache"}
