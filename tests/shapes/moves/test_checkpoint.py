"""The embedded checkpoint for moves is what its card says."""

from transformers import VideoLlavaForConditionalGeneration

from vtw_eval.checkpoints import EMBEDDED
from vtw_eval.shapes.boards.making.families.check import accuracy
from vtw_eval.shapes.moves.making.video_llava import VideoLlava
from vtw_eval.shapes.moves.questions import OPEN

SEEN = ("actor", "action", "direction", "repeat", "exist", "choice")
"""What it reads nearly without error."""


def test_the_checkpoint_sees_what_it_was_not_trained_on():
    folder = EMBEDDED["moves_video_llava"]
    assert (folder / "model.safetensors").stat().st_size < 5e6
    assert (folder / "README.md").is_file()
    model, notes = VideoLlavaForConditionalGeneration.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not any(notes.values())
    seen, blind = (accuracy(VideoLlava(), model, 32, layers, seed=7, autocast=False) for layers in (None, 0))
    assert min(seen[type] for type in SEEN) >= 0.9
    assert max(blind[type] for type in OPEN) <= 0.6
