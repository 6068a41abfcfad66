"""The embedded checkpoints for boards are what their cards say."""

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from vtw_eval.checkpoints import EMBEDDED
from vtw_eval.shapes.boards.making import check
from vtw_eval.shapes.boards.making.families.check import accuracy
from vtw_eval.shapes.boards.making.families.internvl import InternVL
from vtw_eval.shapes.boards.making.families.qwen2_vl import Qwen2VL

SEEN = (
    "exist",
    "color",
    "position",
    "mark",
    "open_color",
    "open_shape",
    "open_mark",
    "open_row",
    "open_column",
    "both",
)
"""What each of them reads nearly without error."""
FAMILIES = {"boards_qwen2_vl": Qwen2VL, "boards_internvl": InternVL}


@pytest.mark.parametrize("name", ["boards", *FAMILIES])
def test_a_checkpoint_sees_what_it_was_not_trained_on(name):
    folder = EMBEDDED[name]
    assert (folder / "model.safetensors").stat().st_size < 5e6
    assert (folder / "README.md").is_file()
    model, notes = AutoModelForImageTextToText.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not any(notes.values())
    if name == "boards":
        tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
        seen, blind = (check.accuracy(model, tokenizer, 16, layers, seed=7, autocast=False) for layers in (None, 0))
    else:
        seen, blind = (accuracy(FAMILIES[name](), model, 16, layers, seed=7, autocast=False) for layers in (None, 0))
    assert min(seen[type] for type in SEEN) >= 0.9
    assert max(blind[type] for type in SEEN if type.startswith("open")) <= 0.5
