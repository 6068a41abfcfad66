"""A dataset that cannot be loaded, told so that a user can act."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vtw_eval.errors import named
from vtw_eval.model_adapters.errors import DatasetError
from vtw_eval.model_adapters.lmms.patches import LMMS_EVAL
from vtw_eval.model_adapters.patches import Patches

_LONGEST = 400
"""Characters of a loader's own message that are shown; ``datasets`` lists every file type it knows."""


def place_of(dataset: str) -> str:
    """Return where a dataset's files are, or would be: a local folder of its name, else the Hub's cache."""
    if Path(dataset).exists():
        return str(Path(dataset).absolute())
    from huggingface_hub import constants

    return str(Path(constants.HF_HUB_CACHE) / f"datasets--{dataset.replace('/', '--')}")


@contextmanager
def explain_dataset_errors(patches: Patches | None = None) -> Iterator[None]:
    """Let lmms-eval tell which dataset could not be loaded, and why; it shows "RetryError" alone.

    Parameters
    ----------
    patches
        What else is replaced in lmms-eval.

    Raises
    ------
    DatasetError
        From the loading of a task, after lmms-eval's own five attempts.
    """
    from tenacity import RetryError

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def download(self: Any, *args: Any, **given: Any) -> Any:
            try:
                return original(self, *args, **given)
            except RetryError as error:
                cause = error.last_attempt.exception()
                reason = named(cause)
                shown = reason if len(reason) <= _LONGEST else f"{reason[:_LONGEST]}..."
                name = self.DATASET_PATH + (f" ({self.DATASET_NAME})" if self.DATASET_NAME else "")
                raise DatasetError(
                    f"task {self.config.task}: the dataset {name} cannot be loaded. Its files belong in "
                    f"{place_of(self.DATASET_PATH)}, where they are fetched from the Hub if the folder is deleted. "
                    f"{shown}"
                ) from cause

        return download

    with (patches or Patches(LMMS_EVAL)).replaced("download", make):
        yield
