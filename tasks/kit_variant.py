"""Named forms of our video datasets for VLMEvalKit's table of them."""

from __future__ import annotations

from functools import partial
from typing import Any

from vlmeval.dataset.video_base import VideoBaseDataset


class Variant(partial[VideoBaseDataset]):
    """A named form of a dataset, of the type that the kit expects in its table.

    Its ``run`` calls it with all options of the command line, none of which is meant for the dataset.
    """

    def __call__(self, *_: Any, **__: Any) -> VideoBaseDataset:
        """Return the dataset."""
        return super().__call__()
