"""What a method may look at in the vision tower, token by token of the prompt."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vtw_eval.engine.calls import parameters
from vtw_eval.engine.layout import Prompt
from vtw_eval.engine.reads import Look, Reads
from vtw_eval.engine.tower_attention import received_attention, tower_keys
from vtw_eval.engine.tower_packing import pack
from vtw_eval.engine.tower_pass import TowerCall, TowerRecorder, layer_number, state_number
from vtw_eval.engine.tower_places import arranged, places_of, scattered

Heads = Literal["mean", "each", "joined"]
By = Literal["cls", "column"]


@dataclass(frozen=True)
class TokenIds:
    """Placeholder ids by what they show."""

    image: frozenset[int]
    video: frozenset[int]

    @classmethod
    def of(cls, config: Any) -> TokenIds:
        """Return those of a model's config."""
        names = ("image_token_id", "image_token_index"), ("video_token_id", "video_token_index")
        found = ((getattr(config, name, None) for name in kind) for kind in names)
        image, video = (frozenset(one for one in kind if one is not None) for kind in found)
        return cls(image, video)


class TowerView:
    """The vision tower's side of a prompt's vision tokens.

    Everything is ``[rows, tokens, ...]`` for all tokens of the prompt, at the places of ``view.prompt``; gather by
    ``view.index`` for the current tokens. A vision token stands for one patch of the tower or for several (2x2 merges,
    pixel shuffle, pooling): it gets their mean, made by the model's own packing. Text, padding, and newlines that carry
    a placeholder have zeros, and -1 as place.

    The projected features are ``view.embeddings`` at the vision tokens, and the question's embeddings
    ``view.embeddings`` at ``view.instruction`` (``Reads.EMBEDDINGS``): both as the first layer gets them, which is the
    words scaled by the square root of the width in Gemma 3 and PaliGemma, and the features as the projector made them.

    Parameters
    ----------
    recorder
        Holds what the tower did in this pass.
    prompt
        The prompts.
    width
        Width of the decoder.
    ids
        Placeholder ids.
    looks
        Where to note what is computed.
    who
        The method, for messages.

    Raises
    ------
    ValueError
        By each of the members, if the prompt has vision tokens of which the tower has seen nothing.
    UpstreamChangedError
        By each of the members, if what the tower has seen has not as many tokens as the prompt.
    """

    def __init__(
        self, recorder: TowerRecorder, prompt: Prompt, width: int, ids: TokenIds, looks: list[Look], who: str
    ) -> None:
        self.recorder = recorder
        self.tower = recorder.tower
        self.prompt = prompt
        self.width = width
        self.looks = looks
        self.who = who
        self.ids = ids
        self._places: tuple[Tensor, Tensor] | None = None

    @functools.cached_property
    def calls(self) -> tuple[TowerCall, ...]:
        """Runs of the tower for this prompt, one for images and one for videos."""
        if not bool(self.prompt.vision.any()):
            return ()
        if not self.recorder.calls:
            raise ValueError(
                f"{self.who} reads the vision tower, which has not run for this prompt: pass the pixel values to the "
                "model with the prompt (no inputs_embeds, no mm_encoder_outputs made before)."
            )
        return tuple(self.recorder.calls.values())

    @functools.cached_property
    def masks(self) -> dict[str, Tensor]:
        """Tokens of the prompt, boolean ``[rows, tokens]``, that each of these runs has made."""
        return {call.kind: self._shown(call.kind) for call in self.calls}

    @property
    def has_cls(self) -> bool:
        """Whether the tower has a CLS token."""
        return self.tower.has_cls

    @property
    def frames_are_images(self) -> bool:
        """Whether the model shows the frames of a video as images with texts between, told from others by nothing."""
        return self.tower.owner.config.model_type == "internvl"  # type: ignore[union-attr]

    @property
    def num_layers(self) -> int:
        """Number of layers of the tower."""
        return self.tower.num_layers

    def features(self, layer: int = -2) -> Tensor:
        """Hidden states of the tower, ``[rows, tokens, width]``, float32 or finer.

        Parameters
        ----------
        layer
            As ``vision_feature_layer`` of transformers: 0 enters the first layer, -1 leaves the last one, before any
            norm behind it.

        Raises
        ------
        ValueError
            If the method does not name this layer in ``tower_layers()``.
        """
        number = state_number(layer, self.num_layers)
        return self._gathered(lambda call: self._state(call, number, layer))

    def received(self, layer: int = -2, heads: Heads = "mean", by: By | None = None) -> Tensor:
        """Attention that tokens receive in a layer of the tower, computed from its queries and keys.

        Parameters
        ----------
        layer
            The layer, negative numbers from the end: -1 is the last one, -2 the one whose output is the hidden states
            of number -2.
        heads
            "mean" over heads; "each" of them; "joined": one softmax over the full width, as if there were one head.
        by
            "cls": attention of the CLS token. "column": mean over all queries that see the token, a CLS token
            included; where a tower has windows or several images in one sequence, those of its window or image. None:
            "cls" where the tower has one, else "column". The two are different quantities.

        Returns
        -------
        Tensor
            ``[rows, tokens]``, or ``[rows, tokens, heads]`` for "each"; float32 or finer.

        Raises
        ------
        ValueError
            If the tower has no CLS token, or the method does not name this layer in ``tower_layers()``.
        """
        by = by or ("cls" if self.has_cls else "column")
        if by == "cls" and not self.has_cls:
            raise ValueError(f"{self.who} reads attention of a CLS token, which this model's tower has not.")
        number = layer_number(layer, self.num_layers)

        def scores(call: TowerCall) -> Tensor:
            module, hidden, options = self._layer(call, number, layer)
            found = received_attention(module, hidden, options, by=by, joined=heads == "joined")
            self._look(number, hidden.shape[-2], 1 if by == "cls" else hidden.shape[-2], found.flops)
            values = found.values.mT  # [..., tokens, heads]
            return values if heads == "each" else values.mean(dim=-1, keepdim=True)

        found = self._gathered(scores)
        return found if heads == "each" else found.squeeze(-1)

    def keys(self, layer: int = -1, heads: Literal["mean", "each"] = "mean") -> Tensor:
        """Keys of a layer of the tower, as they enter its attention.

        Parameters
        ----------
        layer
            As in :meth:`received`.
        heads
            "mean" over heads, or "each" of them.

        Returns
        -------
        Tensor
            ``[rows, tokens, head width]``, or ``[rows, tokens, heads, head width]``; float32 or finer.

        Raises
        ------
        ValueError
            If the method does not name this layer in ``tower_layers()``.
        """
        number = layer_number(layer, self.num_layers)
        count = 1

        def keys(call: TowerCall) -> Tensor:
            nonlocal count
            module, hidden, options = self._layer(call, number, layer)
            found = tower_keys(module, hidden, options)
            self._look(number, hidden.shape[-2], 0, found.flops)
            values = found.values.mean(dim=-2, keepdim=True) if heads == "mean" else found.values
            count = values.shape[-2]
            return values.flatten(-2)

        found = self._gathered(keys).unflatten(-1, (count, -1))
        return found if heads == "each" else found.squeeze(-2)

    @property
    def places(self) -> Tensor:
        """Where tokens stand, long ``[rows, tokens, 5]``: image, frame, tile, row and column; -1 without a place.

        * image: number of the image or video in its row of the batch, in the order of the prompt.
        * frame: of a video (of frame pairs, where the tower joins two); 0 for images.
        * tile: 0 for the whole image, and from 1 on its tiles in the order of the tower; 0 where there are none.
          Families whose tiles stand apart in the prompt (Idefics3, SmolVLM, Aya Vision, Cohere2 Vision) do not tell
          which belong together: there each tile is an image of its own.
        * row, column: in the grid of the tokens of this tile or frame, after merges and cuts. -1 for a CLS token that
          goes to the decoder. Tokens pooled over the border of two tiles have no tile, row or column.
        """
        return self._where()[0]

    @property
    def extent(self) -> Tensor:
        """Rows and columns of the grid in which a token stands, long ``[rows, tokens, 2]``; -1 without a place."""
        return self._where()[1]

    def project(self, features: Tensor) -> Tensor:
        """Return what the projector makes of features of the tower.

        Parameters
        ----------
        features
            ``[n, patches per token, width]``, of the layer that the model projects.

        Returns
        -------
        Tensor
            ``[n, width of the decoder]``, in the type of the model.

        Raises
        ------
        ValueError
            If the projector does not take one patch for each token.
        """
        inside = self.tower.projector.named_modules()  # costs are those of merged LoRA
        linear = [m for name, m in inside if isinstance(m, torch.nn.Linear) and "lora_" not in name]
        if self.tower.merges or features.shape[1] != 1 or not linear or linear[0].in_features != features.shape[-1]:
            raise ValueError(
                f"{self.who} projects features of the tower, but the projector of this model joins several patches or "
                "layers into one token: only whole tokens can be dropped or merged, behind the projector."
            )
        self.looks.append(
            Look(
                Reads.TOWER,
                self.num_layers,
                len(features),
                flops=sum(2 * len(features) * module.in_features * module.out_features for module in linear),
            )
        )
        dtype: Any = next(self.tower.projector.parameters()).dtype
        if not dtype.is_floating_point:  # quantized weights are integers
            dtype = self.tower.owner.dtype
        projected: Tensor = self.tower.projector.forward(features[:, 0].to(dtype))
        return projected

    def _where(self) -> tuple[Tensor, Tensor]:
        if self._places is None:
            placed = {call.kind: places_of(self.recorder, call, self.width) for call in self.calls}
            self._places = arranged(self.prompt.vision, self.masks, placed)
        return self._places

    def _state(self, call: TowerCall, number: int, layer: int) -> Tensor:
        if number not in call.states:
            raise ValueError(
                f"{self.who} reads layer {layer} of the vision tower and does not declare it: name it in "
                "tower_layers() of its class."
            )
        return call.states[number]

    def _layer(self, call: TowerCall, number: int, layer: int) -> tuple[torch.nn.Module, Tensor, dict[str, Any]]:
        hidden = self._state(call, number, layer)
        return self.tower.layers[call.which][number], hidden, dict(call.options[number])

    def _look(self, number: int, tokens: int, queries: int, flops: int) -> None:
        self.looks.append(Look(Reads.TOWER, number, tokens, queries, flops))

    def again(self, look: Look) -> None:
        """Compute what a look at another model's tower did, on one image of as many tokens, with states of no value.

        For costs without weights. Where that tower has more layers, the last one stands for them: all cost the same.

        Raises
        ------
        ValueError
            If layers of this tower need more than hidden states.
        """
        if look.queries is None:
            linear = next(m for m in self.tower.projector.modules() if isinstance(m, torch.nn.Linear))
            self.project(linear.weight.new_empty(look.slots, 1, linear.in_features))
            return
        layer = self.tower.layers[0][min(look.layer, self.num_layers - 1)]
        names = [name for name in parameters(layer) if name not in ("hidden_states", "kwargs")]
        key = next((m for name, m in layer.named_modules() if name.rpartition(".")[2] == "k_proj"), None)
        if key is None or not set(names) <= {"attention_mask", "output_attentions"}:
            raise ValueError(f"what {self.who} reads of this vision tower cannot be counted without an image.")
        hidden = key.weight.new_empty(1, look.slots, key.in_features)
        options = dict.fromkeys(names)
        if look.queries:
            by: By = "cls" if look.queries == 1 else "column"
            flops = received_attention(layer, hidden, options, by=by, joined=False).flops
        else:
            flops = tower_keys(layer, hidden, options).flops
        self._look(look.layer, look.slots, look.queries, flops)

    @torch.no_grad()
    def _gathered(self, values: Callable[[TowerCall], Tensor]) -> Tensor:
        """Bring what each run of the tower gives, ``[..., channels]``, to the tokens of the prompt."""
        found = None
        for call in self.calls:
            packed = pack(self.recorder, call, values(call), self.width).values.to(self.prompt.vision.device)
            if found is None:
                found = packed.new_zeros(*self.prompt.vision.shape, packed.shape[1])
            found = scattered(found, self.masks[call.kind], packed)
        return torch.zeros(*self.prompt.vision.shape, 1, device=self.prompt.vision.device) if found is None else found

    def _shown(self, kind: str) -> Tensor:
        """Return which tokens of the prompt a run of the tower has made."""
        given, ids = self.prompt.ids, self.ids
        if len(self.calls) == 1:
            return self.prompt.vision
        if given is None or ids.image & ids.video or not ids.video:
            raise ValueError(f"{self.who} reads the vision tower: images beside videos cannot be told apart here.")
        own = ids.image if kind == "image" else ids.video
        return self.prompt.vision & torch.isin(given, given.new_tensor(sorted(own))).to(self.prompt.vision.device)
