"""Hiding vision tokens by the mask in packed batches is what their withdrawal by the engine does."""

import pytest
import torch

from tests.shapes.boards.test_training import TINY
from vtw_eval import VTW
from vtw_eval.shapes.boards.data import held_out
from vtw_eval.shapes.boards.making.check import accuracy, hidden_from
from vtw_eval.shapes.boards.making.model import build_model
from vtw_eval.shapes.boards.making.recipe import to_pixels
from vtw_eval.shapes.boards.processor import build_processor
from vtw_eval.shapes.boards.questions import TYPES
from vtw_eval.shapes.making.packing import answer_logits, pack
from vtw_eval.shapes.questions import prompt


@pytest.mark.parametrize("k", [0, 1, 2])
def test_hidden_tokens_are_withdrawn_ones(k):
    processor = build_processor()
    model = build_model(processor.tokenizer, 1, TINY.size)
    model.set_attn_implementation("eager")
    samples = [held_out(type, 1)[0] for type in ("relate", "choice")]
    for sample in samples:
        batch = pack(processor.tokenizer, [[sample.question]], 256)
        with hidden_from(model, k, batch.input_ids == model.config.image_token_id), torch.no_grad():
            hidden = answer_logits(model, to_pixels(sample.image[None]), batch)[0]
        content = [{"type": "image"}, {"type": "text", "text": prompt(sample.question)}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(text=text, images=sample.image, return_tensors="pt")
        with VTW(k=k)(model), torch.no_grad():
            withdrawn = model(**inputs).logits[0, -1]
        torch.testing.assert_close(hidden, withdrawn, atol=1e-4, rtol=1e-4)


def test_accuracy_asks_every_type():
    processor = build_processor()
    model = build_model(processor.tokenizer, 1, TINY.size)
    shares = accuracy(model, processor.tokenizer, scenes=16)
    assert tuple(shares) == TYPES
    assert all(0 <= share <= 1 for share in shares.values())
