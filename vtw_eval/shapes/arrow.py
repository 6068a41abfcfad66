"""Test sets on disk, as Arrow files that ``datasets.load_from_disk`` reads; made on first use."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vtw_eval.files import folder_atomically

Rows = list[dict[str, Any]]


def png(image: np.ndarray) -> dict[str, Any]:
    """Return an image, uint8, [height, width, 3], as a value of ``datasets.Image``."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def hash_of(files: Iterable[str | None]) -> str:
    """Return a hash of source files, and of this one, so that changed code never reads stale data."""
    digest = hashlib.blake2b(digest_size=8)
    for file in (*files, __file__):
        assert file is not None, "modules of this package are files"
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def kept(makers: Mapping[str, Callable[[], Rows]], name: str, cache: Path, code: str) -> Path:
    """Return the directory of a test set, making it first if it is not there.

    Safe with several processes at a time: each builds in a directory of its own, the first to finish gives it its name.
    A row's ``image`` becomes a column of images. Its ``file``, bytes, becomes a file of the directory, at ``path``.

    Parameters
    ----------
    makers
        What makes the rows of each test set.
    name
        One of them.
    cache
        Where test sets are kept.
    code
        Hash of the code that makes them.

    Returns
    -------
    pathlib.Path
        For ``datasets.load_from_disk``.

    Raises
    ------
    ValueError
        If there is no such test set.
    """
    if name not in makers:
        raise ValueError(f"unknown test set {name!r}; known: {', '.join(makers)}")
    final = cache / f"{name}-{code}"
    if final.is_dir():
        return final

    import datasets  # an optional dependency, and slow to import

    rows = makers[name]()
    files = {row["path"]: row.pop("file") for row in rows if "file" in row}
    features = {key: datasets.Value("string") for key in rows[0]}
    if "image" in rows[0]:
        features["image"] = datasets.Image()
    if "options" in rows[0]:
        features["options"] = datasets.List(datasets.Value("string"))
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    table = datasets.DatasetDict({"test": datasets.Dataset.from_dict(columns, features=datasets.Features(features))})
    with folder_atomically(final, replace=False) as part:  # another process may be faster
        table.save_to_disk(part)
        for path, content in files.items():
            (part / path).parent.mkdir(exist_ok=True)
            (part / path).write_bytes(content)
    return final
