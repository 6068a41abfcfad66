"""Pictures of VLMEvalKit's tables: what is lost on their way to the files that the kit's models open.

A table holds pictures as text. The kit decodes each to a PNG file before a model sees it; there the orientation tag is
gone, and what was transparent has some colour. It fails at pictures that PNG cannot hold, such as CMYK.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from vtw_eval.files import write_atomically
from vtw_eval.media import Media, once, open_picture, strictly
from vtw_eval.models.failures import document_errors


class TablePictures:
    """Stands between an image dataset of the kit and a model.

    Parameters
    ----------
    dataset
        The dataset. Its ``dump_image`` and ``build_prompt`` are replaced in this object of it.
    media
        "harness": pictures are dumped as the kit does, and what differs is noted; where the kit fails, and with
        "upright", they are dumped as a viewer shows them, beside the kit's files.
    """

    def __init__(self, dataset: Any, media: Media) -> None:
        self.dataset = dataset
        self.media = media
        self.notes: dict[str, tuple[str, ...]] = {}
        """By path of a dumped picture: how it differs from what a viewer shows of the table's."""
        self._asked = ""
        self._dump = type(dataset).dump_image.__get__(dataset)
        self._build = type(dataset).build_prompt.__get__(dataset)
        dataset.dump_image = self.dump_image
        dataset.build_prompt = self.build_prompt

    @classmethod
    def of(cls, dump_image: Any, media: Media) -> TablePictures | None:
        """Return what stands before the dataset that a ``dump_image`` belongs to, None if it belongs to none."""
        owner = getattr(dump_image, "__self__", None)
        dataset = owner.dataset if isinstance(owner, TablePictures) else owner
        return cls(dataset, media) if hasattr(type(dataset), "build_prompt") else None

    @contextmanager
    def asking(self, line: Any) -> Iterator[None]:
        """Note that a row is asked about next; errors within name it."""
        index = str(line if isinstance(line, int | str) else line["index"])
        self._asked = ""
        with document_errors(self.name(index)):
            yield
        self._asked = index

    def asked(self) -> str:
        """Return the index of the row that is asked about, empty if that is not known, and forget it."""
        index, self._asked = self._asked, ""
        return index

    def name(self, index: str) -> str:
        """Return how messages call a row."""
        return f"{self.dataset.dataset_name}, index {index}"

    def notes_on(self, paths: Sequence[str]) -> tuple[str, ...]:
        """Return how dumped pictures differ from what a viewer shows of the table's."""
        return once(note for path in paths for note in self.notes.get(path, ()))

    def build_prompt(self, line: Any, *args: Any, **given: Any) -> Any:
        """Return the dataset's prompt of a row.

        Raises
        ------
        vtw_eval.models.failures.DocumentError
            If there is none; it names the row.
        """
        with self.asking(line):
            return self._build(line, *args, **given)

    def dump_image(self, line: Any) -> Any:
        """Write the pictures of a row to files, and return their paths.

        Raises
        ------
        OSError
            For a picture that does not open or is truncated.
        """
        sources = _sources(line)
        with strictly():
            opened = [
                open_picture(Image.open(io.BytesIO(base64.b64decode(source))), self.media, _as_dumped)
                for source in sources
            ]
            try:
                paths = self._dump(line)
            except (OSError, ValueError):  # PNG cannot hold all that opens
                if not opened:
                    raise
                return self._dump_upright(line, sources)
        if self.media == "upright" and opened:
            return self._dump_upright(line, sources)
        if isinstance(paths, Sequence) and len(paths) == len(opened):
            self.notes.update({str(path): notes for path, (_, notes) in zip(paths, opened, strict=True)})
        return paths

    def _dump_upright(self, line: Any, sources: Sequence[str]) -> list[str]:
        folder = Path(self.dataset.img_root)
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for i, source in enumerate(sources):
            image, notes = open_picture(Image.open(io.BytesIO(base64.b64decode(source))), "upright")
            path = str(folder / f"{line['index']}_{i}_upright.png")
            buffer = io.BytesIO()
            image.save(buffer, format="PNG")
            write_atomically(Path(path), buffer.getvalue())
            self.notes[path] = notes
            paths.append(path)
        return paths


def _sources(line: Any) -> list[str]:
    """Return the pictures of a row as base64 text; none where the table has paths."""
    if "image" not in line:
        return []
    images = line["image"]
    return list(images) if isinstance(images, list) else [images]


def _as_dumped(image: Image.Image) -> Image.Image:
    """Convert as the kit does on the way from a table to RGB."""
    return image.convert("RGB")
