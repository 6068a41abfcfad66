"""What VLMEvalKit's protocol asks of a model family beside lmms-eval's two: its messages and its own prompts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from PIL import Image
from vlmeval.dataset import DATASET_MODALITY, DATASET_TYPE

from vtw_eval.media import open_pictures, strictly
from vtw_eval.models.family import DocumentPrompt, Family, all_images, generation_arguments
from vtw_eval.models.options import Options
from vtw_eval.models.video import Clip

Part = Mapping[str, str]
"""``{"type": "text" | "image" | "video", "value": text or path}``."""

Row = Mapping[str, Any]
"""A row of a dataset's table."""


@dataclass(frozen=True, kw_only=True)
class KitOptions(Options):
    """Options that all models have under VLMEvalKit, beside those of their adapter.

    The kit asks one question at a time; a ``batch_size`` above 1 counts the images (or rows, where nothing is shared)
    of its table that are answered together, the one that it asks about first.

    Parameters
    ----------
    max_new_tokens
        Longest answer. ``None``: that of the kit's class for the family.
    temperature, top_p, num_beams
        As for ``generate``; greedy unless the temperature is positive.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float | None = None
    num_beams: int = 1

    @property
    def generation(self) -> dict[str, Any]:
        """Generation arguments by the names that tasks of lmms-eval use."""
        named = ("max_new_tokens", "temperature", "top_p", "num_beams")
        return {name: value for name in named if (value := getattr(self, name)) is not None}


@dataclass(frozen=True)
class KitQuestion:
    """One question as VLMEvalKit asks it."""

    parts: Sequence[Part]
    """Texts and media in their order."""
    dataset: str | None = None
    """Name of the dataset."""
    nframe: int | None = None
    """Frames to take from a video; None: as many as ``fps`` gives."""
    fps: float | None = None
    """Frames per second to take from a video, where ``nframe`` does not say how many."""

    def values(self, kind: str) -> list[str]:
        """Return the texts, or the paths of the images or videos."""
        return [part["value"] for part in self.parts if part["type"] == kind]

    @property
    def of_video(self) -> bool:
        """Whether the dataset asks about videos."""
        return self.dataset is not None and DATASET_MODALITY(self.dataset) == "VIDEO"


@dataclass(frozen=True)
class KitPrompt(DocumentPrompt):
    """A prompt with what only this protocol varies from question to question."""

    clips: tuple[Clip, ...] = ()
    """Frames of the videos; ``videos`` stays empty."""
    tiles: int = 1
    """Most tiles that an image is cut into, where images are cut."""

    @property
    def video_count(self) -> int:
        """Number of videos."""
        return len(self.clips)

    @property
    def held(self) -> tuple[object, ...]:
        """Images, and frames of videos."""
        return (*self.images, *self.clips)

    def holding(self, other: Self) -> Self:
        """Return the prompt with the images and the frames of another that shows the same."""
        return replace(self, images=other.images, clips=other.clips)

    def beside(self) -> Iterator[bytes]:
        """Yield the frames of videos with all that a processor is told of them, and how images are cut."""
        yield repr(self.tiles).encode()
        for clip in self.clips:
            yield repr(replace(clip, frames=clip.frames[:0])).encode()
            yield repr(clip.frames.shape).encode()
            yield clip.frames.tobytes()


class KitFamily(ABC):
    """Mixed into a :class:`~vtw_eval.models.family.Family` to answer as VLMEvalKit's class for it does."""

    longest_answer: ClassVar[int] = 2048
    """Tokens of the longest answer."""

    interleaves: ClassVar[bool] = True
    """Whether the kit shows texts and media in the order of its dataset; otherwise its first image and all texts."""

    model: Any
    tokenizer: Any
    options: Any

    @property
    def takes_video(self) -> bool:
        """Whether videos come as files; otherwise the kit shows their frames as images."""
        return False

    @property
    def default_frames(self) -> tuple[int | None, float | None]:
        """Frames per video and frames per second where the dataset says nothing; None: the class has no such value."""
        return None, None

    @property
    def stop_ids(self) -> dict[str, Any]:
        """What the checkpoint's generation config says, because the kit's classes name none."""
        config = self.model.generation_config
        eos = self.tokenizer.eos_token_id if config.eos_token_id is None else config.eos_token_id
        pad = self.tokenizer.pad_token_id if config.pad_token_id is None else config.pad_token_id
        first = eos[0] if isinstance(eos, list) else eos
        return {"eos_token_id": eos, "pad_token_id": first if pad is None else pad}

    def generation(self, generation: Mapping[str, Any]) -> dict[str, Any]:
        """Greedy unless asked, up to the longest answer of the kit's class."""
        return generation_arguments(generation, self.longest_answer, self.stop_ids, self.options.use_cache)

    def has_own_prompt(self, dataset: str) -> bool:
        """Whether the kit's class words a dataset's questions itself."""
        return False

    def own_prompt(self, row: Row, dataset: str, images: Sequence[str]) -> list[dict[str, str]]:
        """Return the message for a row, where :meth:`has_own_prompt`."""
        raise NotImplementedError(f"{dataset} has the prompt of its dataset.")

    def pictures(self, question: KitQuestion) -> tuple[tuple[Image.Image, ...], tuple[str, ...]]:
        """Return the images of a question in mode RGB, as the kit's classes open them, and the notes on them.

        Raises
        ------
        OSError
            If one does not open, or is truncated, whatever another harness in the process has told Pillow.
        """
        with strictly():
            images, notes = open_pictures(filter(None, question.values("image")), self.options.media)
        return tuple(image.convert("RGB") for image in images), notes

    @abstractmethod
    def kit_prompt(self, question: KitQuestion) -> KitPrompt:
        """Return the prompt of a question."""


def kit_family(family: Family[Any]) -> KitFamily:
    """Return a family as one with VLMEvalKit's protocol.

    Raises
    ------
    TypeError
        If it has only lmms-eval's.
    """
    if not isinstance(family, KitFamily):
        raise TypeError(f"{type(family).__name__} does not follow VLMEvalKit's protocol.")
    return family


def images_and_videos(prompts: Sequence[DocumentPrompt], frames: Callable[[Clip], Any]) -> dict[str, Any]:
    """Return the media of a batch, as processors of transformers take them.

    Parameters
    ----------
    prompts
        The batch.
    frames
        What the processor gets of a video.
    """
    media: dict[str, Any] = {}
    if images := all_images(prompts):
        media["images"] = images
    clips = [clip for prompt in prompts if isinstance(prompt, KitPrompt) for clip in prompt.clips]
    if clips:
        media["videos"] = [frames(clip) for clip in clips]
    return media


def dataset_type(dataset: str) -> str:
    """Return the kit's type of a dataset, such as "MCQ", "Y/N" or "VQA"."""
    return DATASET_TYPE(dataset)
