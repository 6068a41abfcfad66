"""CLIP's text tower, where a method compares patches with the question in CLIP's own space."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, CLIPModel

from vtw_eval.anatomy import Anatomy, UnsupportedModelError, find_tower
from vtw_eval.engine import LayerView, Reads
from vtw_eval.engine.reads import Look
from vtw_eval.methods.base import precise

_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
_FAR = 0.2
"""Of the norm of CLIP's weights, by which those of a tower that was trained further may differ."""
_MARK = "QUESTION"


class TextSide(Protocol):
    """Compares patches with the question of a row."""

    def compare(self, view: LayerView, row: int, patches: Tensor, *, cosine: bool) -> Tensor:
        """Return how much patches ``[n, width of the tower]`` resemble the row's question, ``[n]``."""


@dataclass(frozen=True)
class ClipText:
    """The text tower of a CLIP checkpoint, and what brings patches of its vision tower into the same space."""

    text_model: Any
    text_projection: nn.Module
    norm: nn.Module
    """Behind the last layer of CLIP's vision tower; here of patches of the last layer but one, as published."""
    visual_projection: nn.Module
    tokenizer: Any
    """CLIP's."""
    question_of: Callable[[Sequence[int]], str]
    """Makes a question of the ids behind the last vision token of a prompt."""

    @torch.no_grad()
    def compare(self, view: LayerView, row: int, patches: Tensor, *, cosine: bool) -> Tensor:
        """Return how much patches resemble the question of a row.

        Parameters
        ----------
        view
            What the method sees.
        row
            Of which prompt.
        patches
            Features of the tower, ``[n, width]``, layer :data:`~vtw_eval.methods.clip_scored.PATCHES`.
        cosine
            Whether the cosine is asked for, with a question of more tokens than the tower takes in parts of as many,
            whose embeddings are averaged; or the product with the embedding of its beginning.

        Returns
        -------
        Tensor
            ``[n]``, float32 or finer.
        """
        device = patches.device
        for part in (self.text_model, self.text_projection, self.norm, self.visual_projection):
            part.to(device)
        ids = view.prompt.ids
        if ids is None:
            raise ValueError("the question is read from the prompt's token ids: pass input_ids, or prompt_ids=...")
        own = ids[row][view.index[row][view.instruction[row]].to(ids.device)].tolist()
        most = int(self.text_model.config.max_position_embeddings)
        tokens = self.tokenizer(self.question_of(own), truncation=not cosine, max_length=most)["input_ids"]
        parts = [torch.tensor([tokens[i : i + most]], device=device) for i in range(0, len(tokens), most)]
        texts = [self.text_projection(self.text_model(input_ids=part).pooler_output)[0] for part in parts]
        projected = self.visual_projection(self.norm(precise(patches).to(texts[0].dtype)))
        self._note(view, len(patches), [part.shape[1] for part in parts])
        if not cosine:
            return projected @ texts[0]
        text = torch.stack([normalize(each, dim=0) for each in texts]).mean(dim=0)
        return normalize(projected, dim=-1) @ text

    def _note(self, view: LayerView, patches: int, lengths: Sequence[int]) -> None:
        """Note the FLOPs of the text tower, both projections and the comparison."""
        config = self.text_model.config
        h, f, p = config.hidden_size, config.intermediate_size, config.projection_dim
        tower = config.num_hidden_layers * sum(2 * n * (4 * h * h + 2 * h * f) + 4 * n * n * h for n in lengths)
        width = int(cast(Tensor, self.visual_projection.weight).shape[1])
        flops = tower + 2 * len(lengths) * h * p + 2 * patches * width * p + 2 * patches * p
        view.looks.append(Look(Reads.HIDDEN, view.layer, view.index.shape[1], flops=flops))


def clip_text(text: str, anatomy: Anatomy) -> ClipText:
    """Open a CLIP checkpoint for a model whose vision tower is that of the checkpoint.

    Parameters
    ----------
    text
        Folder or Hub id of a CLIP, such as ``openai/clip-vit-large-patch14-336``.
    anatomy
        The model.

    Raises
    ------
    ValueError
        If it cannot be opened, if the model's tower has other sizes or other weights, or if the model's own tokenizer
        is not beside its weights. A tower that was trained further, so that its weights are near, is taken.
    """
    try:
        tower: Any = find_tower(anatomy).towers[0]
    except UnsupportedModelError as error:
        raise ValueError(f"text={text}: {error}") from None
    try:
        config: Any = AutoConfig.from_pretrained(text)
    except (OSError, ValueError) as error:
        raise ValueError(f"text={text} cannot be opened: {str(error).splitlines()[0]}") from None
    if config.model_type != "clip":
        raise ValueError(f"text={text} is a {config.model_type}; it must be a CLIP with a text tower.")
    own = getattr(tower, "config", None)
    if getattr(own, "model_type", "") != "clip_vision_model":
        raise ValueError(f"text={text}: the vision tower of this model is no CLIP, so no text tower of CLIP fits it.")
    for name in _SIZES:
        theirs, mine = getattr(config.vision_config, name), getattr(own, name)
        if theirs != mine:
            raise ValueError(
                f"text={text} has a vision tower with {name}={theirs}, this model one with {mine}: it must be the CLIP "
                "that the model's tower was taken from."
            )
    opened = _opened(text, anatomy.name)
    _check_weights(text, opened[0], tower)
    return opened[1]


@functools.lru_cache(maxsize=1)
def _opened(text: str, name: str) -> tuple[Any, ClipText]:
    """Open a CLIP and the tokenizer of a model; methods that name the same share it."""
    try:
        clip: Any = CLIPModel.from_pretrained(text, dtype=torch.float32).eval()
        tokenizer: Any = AutoTokenizer.from_pretrained(text)
    except (OSError, ValueError) as error:
        raise ValueError(f"text={text} cannot be opened: {str(error).splitlines()[0]}") from None
    embeddings = clip.vision_model.embeddings.patch_embedding.weight.detach()
    vision = clip.vision_model
    made = ClipText(
        clip.text_model,
        clip.text_projection,
        vision.post_layernorm,
        clip.visual_projection,
        tokenizer,
        question_reader(name),
    )
    return embeddings, made


def question_reader(name: str) -> Callable[[Sequence[int]], str]:
    """Return what makes a question of ids: their text, without what the chat template puts behind a question.

    Parameters
    ----------
    name
        Checkpoint of the model, beside whose weights its processor is.

    Raises
    ------
    ValueError
        If there is none.
    """
    try:
        processor: Any = AutoProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"text=... needs the processor of {name or 'this model'} to read the question: {str(error).splitlines()[0]}"
        ) from None
    tokenizer = getattr(processor, "tokenizer", processor)

    def read(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    cue = ""
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": _MARK}]
        asked = [{"role": "user", "content": content}]
        rendered = processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
        cue = read(tokenizer(rendered.rpartition(_MARK)[2], add_special_tokens=False)["input_ids"])
    return lambda ids: read(ids).removesuffix(cue).strip()


def _check_weights(text: str, theirs: Tensor, tower: Any) -> None:
    """Raise ``ValueError`` unless a tower was taken from this CLIP, by what embeds its patches."""
    mine = next(p for name, p in tower.named_parameters() if name.endswith("patch_embedding.weight"))
    if mine.is_meta:  # only whether it can be is asked
        return
    mine = mine.detach().to("cpu", torch.float32)
    if float((mine - theirs.cpu()).norm()) > _FAR * float(theirs.norm()):
        raise ValueError(
            f"text={text} has other weights than the vision tower of this model, which is of another CLIP."
        )
