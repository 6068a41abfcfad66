"""CDPruner and TRIM by CLIP's text tower, on a checkpoint whose tower was taken from a CLIP that is made here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, CLIPConfig, CLIPModel

from tests.support.checkpoints import clip_config, make_checkpoint, make_tokenizer, randomise
from vtw_eval.cost.choice import choice_flops
from vtw_eval.cost.dry_run import tokens_per_layer
from vtw_eval.cost.geometry import Geometry
from vtw_eval.engine import Trace
from vtw_eval.methods import Method, parse_method
from vtw_eval.methods.clip_text import question_reader
from vtw_eval.verify.verdict import verify_config

CONTEXT = 12
"""Tokens that the text tower takes."""
QUESTIONS = ("red?", "Is the blue circle above the green square, or below the other one?")


@dataclass(frozen=True)
class Made:
    """A LLaVA, the CLIP that its tower was taken from, and prompts."""

    model: Any
    processor: Any
    clip: Any
    """The CLIP by transformers' own class, with eager attention."""
    folder: str
    """Of the CLIP."""
    llava: Path

    def inputs(self, rows: list[int]) -> dict[str, Any]:
        """Return the prompts of some questions, each about a picture of its own."""
        asked = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTIONS[row]}]}] for row in rows
        ]
        texts = [self.processor.apply_chat_template(one, add_generation_prompt=True) for one in asked]
        draw = [np.random.default_rng(row).integers(0, 255, (56, 56, 3), dtype=np.uint8) for row in rows]
        pictures = [[Image.fromarray(one)] for one in draw]
        return dict(self.processor(text=texts, images=pictures, padding=True, return_tensors="pt"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    llava = make_checkpoint("llava", tmp_path_factory.mktemp("llava"))
    folder = tmp_path_factory.mktemp("clip")
    model: Any = AutoModelForImageTextToText.from_pretrained(llava).eval()
    make_clip(folder, model)
    clip = CLIPModel.from_pretrained(folder, attn_implementation="eager").eval()
    return Made(model, AutoProcessor.from_pretrained(llava), clip, str(folder), llava)


def make_clip(folder: Path, model: Any, **changed: int) -> None:
    """Write a CLIP with the vision tower of a model, or another one of changed sizes."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer({}, ("<eot>",))
    tokenizer.eos_token = "<eot>"
    ends = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<s>", "<eot>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A <eot>", special_tokens=ends)
    text = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT, "eos_token_id": ends[1][1]}
    vision = {**clip_config(), "projection_dim": 20, **changed}
    clip = CLIPModel(CLIPConfig(text_config={**text, "projection_dim": 20}, vision_config=vision, projection_dim=20))
    randomise(clip, seed=5)
    with torch.no_grad():
        clip.vision_model.post_layernorm.weight.copy_(torch.linspace(0.2, 3, 32))
    if model is not None:
        own = model.model.vision_tower.state_dict()
        theirs = {name: own.get(f"vision_model.{name}", own.get(name)) for name in clip.vision_model.state_dict()}
        clip.vision_model.load_state_dict({**clip.vision_model.state_dict(), **_but_norm(theirs)})
    clip.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _but_norm(weights: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in weights.items() if "post_layernorm" not in name}


def parts_of_question(made: Made, question: str) -> list[list[int]]:
    """Return the question's tokens with begin and end, cut where the text tower is full."""
    tokens = AutoTokenizer.from_pretrained(made.folder)(question)["input_ids"]
    assert tokens[0] == 1 and tokens[-1] == made.clip.config.text_config.eos_token_id
    return [tokens[i : i + CONTEXT] for i in range(0, len(tokens), CONTEXT)]


def unlikeness(made: Made, pixels: torch.Tensor, texts: list[list[int]], *, cosine: bool) -> list[float]:
    """Return minus the similarity of each patch with a text, patch by patch, by CLIP's own forward."""
    states = made.clip.vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
    found = []
    for patch in states[0, 1:]:
        projected = made.clip.visual_projection(made.clip.vision_model.post_layernorm(patch))
        alike = []
        for text in texts:
            whole = made.clip(input_ids=torch.tensor([text]), pixel_values=pixels)
            embedded = made.clip.text_projection(made.clip.text_model(torch.tensor([text])).pooler_output)[0]
            assert torch.allclose(whole.text_embeds[0], embedded / embedded.norm(), atol=1e-6)
            alike.append(float(cosine_similarity(projected, embedded, dim=0) if cosine else projected @ embedded))
        found.append(-sum(alike) / len(alike))
    return found


def largest_determinants(features: torch.Tensor, relevance: list[float], count: int) -> set[int]:
    """Choose one after the other so that the determinant of the chosen ones' kernel is largest."""
    unit = (features / features.norm(dim=1, keepdim=True)).double()
    weight = torch.tensor(relevance, dtype=torch.float64)
    kernel = weight[:, None] * (unit @ unit.T) * weight
    chosen: list[int] = []
    while len(chosen) < count:
        rest = [i for i in range(len(unit)) if i not in chosen]
        chosen.append(max(rest, key=lambda i: float(torch.linalg.det(kernel[[*chosen, i]][:, [*chosen, i]]))))
    return set(chosen)


def run(made: Made, method: Method, rows: list[int]) -> tuple[Trace, list[set[int]], dict[str, Any]]:
    """Run prompts together; return which vision tokens of each stay, by their number in the row."""
    inputs = made.inputs(rows)
    with method(made.model) as trace, torch.no_grad():
        made.model(**inputs)
    assert trace.reduction is not None
    kept = []
    for row, vision in enumerate(trace.reduction.prompt.vision):
        numbers = vision.nonzero().flatten()
        kept.append({i for i, at in enumerate(numbers.tolist()) if bool(trace.kept(0)[row, at])})
    return trace, kept, inputs


@torch.no_grad()
def test_cdpruner_is_the_naive_search_with_clips_relevance(made: Made) -> None:
    method = parse_method(f"cdpruner,r=0.6,text={made.folder}")
    assert not method.question_independent
    _, kept, inputs = run(made, method, [0, 1])
    for row in (0, 1):
        texts = parts_of_question(made, QUESTIONS[row])
        assert (len(texts) > 1) == (row == 1)
        pixels = inputs["pixel_values"][row : row + 1]
        unlike = unlikeness(made, pixels, texts, cosine=True)
        relevance = [(one - min(unlike) + 1e-6) / (max(unlike) - min(unlike)) for one in unlike]
        features = made.model.model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output[0]
        assert kept[row] == largest_determinants(features, relevance, 6)
        assert run(made, method, [row])[1] == [kept[row]]  # alone, without padding
    plain = run(made, parse_method("cdpruner,r=0.6"), [0, 1])[1]
    assert plain != kept


@torch.no_grad()
def test_trim_is_the_naive_choice_by_clips_products(made: Made) -> None:
    method = parse_method(f"trim,tokens=5,text={made.folder}")
    _, kept, inputs = run(made, method, [1, 0])
    for place, question in enumerate(QUESTIONS[::-1]):
        whole = AutoTokenizer.from_pretrained(made.folder)(question)["input_ids"]
        text = whole if len(whole) <= CONTEXT else [*whole[: CONTEXT - 1], whole[-1]]
        unlike = unlikeness(made, inputs["pixel_values"][place : place + 1], [text], cosine=False)
        best = set(sorted(range(len(unlike)), key=lambda i: -unlike[i])[:4])
        last = max(set(range(len(unlike))) - best)  # the mean of the others stands at the end of the image
        assert kept[place] == best | {last}


@torch.no_grad()
def test_the_text_tower_is_in_the_costs(made: Made) -> None:
    trace, _, inputs = run(made, parse_method(f"cdpruner,r=0.6,text={made.folder}"), [0, 1])
    expected = 0
    for row in (0, 1):
        states = made.model.model.vision_tower(inputs["pixel_values"][row : row + 1]).last_hidden_state[0, 1:]
        with FlopCounterMode(display=False) as counter:
            for text in parts_of_question(made, QUESTIONS[row]):
                made.clip.text_projection(made.clip.text_model(torch.tensor([text])).pooler_output)
            made.clip.visual_projection(states)
        expected += counter.get_total_flops()
    width = made.model.config.text_config.hidden_size
    expected += 2 * 2 * 16 * 20 + 2 * 2 * 16 * 16 * width  # patches with the text, features with each other
    assert choice_flops(trace, Geometry.from_config(made.model.config, "made")) == {"similarities": expected}


def test_what_the_template_puts_behind_a_question_is_no_question(made: Made) -> None:
    inputs = made.inputs([1])["input_ids"][0]
    behind = int((inputs == made.model.config.image_token_id).nonzero().max()) + 1
    assert made.processor.decode(inputs[behind:]).endswith("ASSISTANT:")
    assert question_reader(str(made.llava))(inputs[behind:].tolist()) == QUESTIONS[1]


def test_other_checkpoints_are_refused(made: Made, tmp_path: Path) -> None:
    def other(name: str, model: Any = None, **changed: int) -> str:
        make_clip(tmp_path / name, model, **changed)
        return str(tmp_path / name)

    siglip = AutoModelForImageTextToText.from_pretrained(make_checkpoint("llava_onevision", tmp_path / "onevision"))
    refused: list[tuple[Any, Callable[[], str], str]] = [
        (made.model, lambda: str(made.llava), "is a llava; it must be a CLIP"),
        (made.model, lambda: str(tmp_path / "nowhere"), "cannot be opened"),
        (made.model, lambda: other("wide", intermediate_size=48), "with intermediate_size=48, this model one with 64"),
        (made.model, lambda: other("weights"), "other weights than the vision tower"),
        (siglip, lambda: made.folder, "is no CLIP"),
    ]
    for model, text, words in refused:
        method = parse_method(f"cdpruner,text={text()}")
        with pytest.raises(ValueError, match=words), method(model):
            pass


def test_it_is_verified_and_costs_what_it_costs_without(made: Made) -> None:
    for spec in ("cdpruner,r=0.6", "trim,r=0.5"):
        method = parse_method(f"{spec},text={made.folder}")
        assert verify_config(made.model.config, method, "sdpa", fresh=True).verified
        tokens = tokens_per_layer(method, 4, text=20, vision=40)
        assert torch.equal(tokens, tokens_per_layer(parse_method(spec), 4, text=20, vision=40)) and tokens[0] < 60
