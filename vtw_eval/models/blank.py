"""A white picture in the place of each picture of a prompt: what a model answers when there is nothing to see.

VTW's Table 1 (https://arxiv.org/abs/2405.05803) shows "a misleading image full of white area" in this way: it goes
through the processor as any other, so that the prompt has as many vision tokens as with the true one.
"""

from __future__ import annotations

from dataclasses import replace

from PIL import Image

from vtw_eval.media import BLANK
from vtw_eval.models.family import DocumentPrompt
from vtw_eval.models.options import Options


def as_asked(prompt: DocumentPrompt, options: Options) -> DocumentPrompt:
    """Return a document's prompt as the options of the adapter have it: with ``image=blank`` its pictures are white.

    Parameters
    ----------
    prompt
        The document's own.
    options
        Of the adapter.

    Returns
    -------
    DocumentPrompt
        With pictures of the same sizes in mode RGB, the same text, and a note that says so in place of those on the
        true pictures.

    Raises
    ------
    ValueError
        If a video would have to be blank.
    """
    if options.image == "given":
        return prompt
    if prompt.video_count:
        raise ValueError("image=blank shows white pictures in the place of pictures, and this document shows a video.")
    if not prompt.images:
        return prompt
    white = tuple(Image.new("RGB", image.size, "white") for image in prompt.images)
    return replace(prompt, images=white, notes=(BLANK,))
