"""Make TGIF-QA's frame questions ready for both harnesses: one list of documents and one playable video for each.

Two layouts are read. The official one: ``Test_frameqa_question.csv``, tab-separated, with the columns ``gif_name``,
``question``, ``answer`` and ``vid_id``, and GIF files. And the one of Video-ChatGPT and Video-LLaVA, which VTW used:
``test_q.json`` (``video_name``, ``question``, ``question_id``), ``test_a.json`` (``answer``) and MP4 files. Files may
lie in sub-folders.

A GIF is written as H.264 without loss beyond the rounding of RGB to YUV 4:4:4, frame by frame with its times: adapters
take a ``.gif`` for an image, and not every reader of videos opens one. MP4 files are linked, not copied. Copies of the
dataset are known to hold broken MP4 files, so each is decoded to its end, and a GIF or another file of the same name
takes the place of one that is damaged or cut.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vtw_eval.files import folder_atomically
from vtw_eval.models.video import check_whole, frames_of
from vtw_eval.tasks.tgif.data import DOCUMENTS, HOW_TO_GET, TABLE, VIDEOS, dataset_folder

SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")
"""Of videos, most wanted first."""
TICK = Fraction(1, 90000)
"""Seconds; times of written videos are multiples of it."""
QUESTIONS, ANSWERS, OFFICIAL = "test_q.json", "test_a.json", "Test_frameqa_question.csv"


@dataclass(frozen=True)
class Document:
    """A question about a video."""

    question_id: str
    video: str
    """Name of the video, without a suffix."""
    question: str
    answer: str


@dataclass(frozen=True)
class Prepared:
    """What :func:`prepare` made."""

    folder: Path
    questions: int
    videos: int
    converted: int
    """Videos that were not MP4."""
    left_out: int
    """Questions without a readable video; always 0 unless they were allowed."""


def _one(folder: Path, name: str) -> Path | None:
    """Return the file of a name in a folder or below it, the least deep one."""
    return min(folder.rglob(name), key=lambda path: (len(path.parts), path), default=None)


def _read_json(file: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: it is not JSON ({error}). {HOW_TO_GET}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file} is not a list of objects.")
    return rows


def _documents(file: Path, rows: Iterable[Mapping[str, Any]], columns: tuple[str, str, str, str]) -> list[Document]:
    """Return documents from rows whose ``columns`` are id, video, question and answer."""
    found = []
    for number, row in enumerate(rows, 1):
        if missing := [column for column in columns if row.get(column) in (None, "")]:
            raise ValueError(f"{file}, question {number}: no {', '.join(missing)}; it has {', '.join(map(str, row))}.")
        found.append(Document(*(str(row[column]).strip() for column in columns)))
    if not found:
        raise ValueError(f"{file} holds no questions.")
    return found


def read_documents(folder: Path) -> list[Document]:
    """Return the questions of a folder in either layout.

    Raises
    ------
    FileNotFoundError
        If there is neither.
    ValueError
        If a file is damaged, naming it, or questions and answers do not fit together.
    """
    if questions := _one(folder, QUESTIONS):
        answers = questions.with_name(ANSWERS)
        if not answers.exists():
            raise FileNotFoundError(f"{answers} is missing. {HOW_TO_GET}")
        asked, told = _read_json(questions), _read_json(answers)
        if len(asked) != len(told):
            raise ValueError(f"{questions} has {len(asked)} questions, but {answers} has {len(told)} answers.")
        for question, answer in zip(asked, told, strict=True):
            if "question_id" in answer and answer["question_id"] != question.get("question_id"):
                raise ValueError(
                    f"{questions} and {answers} have another order: "
                    f"{question.get('question_id')!r} stands beside {answer['question_id']!r}."
                )
        rows = [{**question, "answer": answer.get("answer")} for question, answer in zip(asked, told, strict=True)]
        return _documents(questions, rows, ("question_id", "video_name", "question", "answer"))
    if official := _one(folder, OFFICIAL):
        try:
            with official.open(encoding="utf-8", newline="") as file:
                lines = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        except UnicodeDecodeError as error:
            raise ValueError(f"{official} is damaged: it is not text ({error}). {HOW_TO_GET}") from error
        return _documents(official, lines, ("vid_id", "gif_name", "question", "answer"))
    raise FileNotFoundError(f"{folder} holds neither {QUESTIONS} nor {OFFICIAL}. {HOW_TO_GET}")


def find_videos(folder: Path) -> dict[str, list[Path]]:
    """Return the video files of a folder by name without suffix, most wanted first."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            found.setdefault(path.stem, []).append(path)
    for paths in found.values():
        paths.sort(key=lambda path: SUFFIXES.index(path.suffix.lower()))
    return found


def write_mp4(source: Path, target: Path) -> None:
    """Write a video as MP4 with what a player shows at the same times, without loss but for the rounding of colours.

    Raises
    ------
    OSError, ValueError
        If the source cannot be read to its end.
    """
    import av

    with av.open(str(target), "w", format="mp4") as made:
        stream: Any = None
        for picture, seconds in frames_of(str(source)):
            if stream is None:
                # The rate of an encoder that is given every time; a decoder's comes from the times.
                stream = made.add_stream("libx264", rate=10, options={"qp": "0", "preset": "veryfast"})
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = "yuv444p"
                stream.codec_context.time_base = TICK
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv444p")
            frame.pts, frame.time_base = round(seconds / TICK), TICK
            made.mux(stream.encode(frame))
        if stream is None:
            raise ValueError("no video frames")
        made.mux(stream.encode())


def place_video(sources: Iterable[Path], target: Path) -> Path:
    """Link or convert the first whole file to ``target``, and return it.

    Raises
    ------
    ValueError
        If none is whole, with what is wrong with each.
    """
    wrong: list[str] = []
    for source in sources:
        try:
            check_whole(str(source))
            if source.suffix.lower() == ".mp4":
                target.symlink_to(source.resolve())
            else:
                write_mp4(source, target)
        except (OSError, ValueError) as error:  # PyAV's errors are either
            target.unlink(missing_ok=True)
            wrong.append(str(error))
        else:
            return source
    raise ValueError("; ".join(wrong) or "no file")


def fetch(source: str) -> Path:
    """Return the folder that ``source`` names: a local one, or a dataset on the Hub, downloaded.

    Raises
    ------
    FileNotFoundError
        If it is neither.
    """
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = [f"*{end}" for end in (QUESTIONS, ANSWERS, OFFICIAL, *SUFFIXES)]
        return Path(snapshot_download(source, repo_type="dataset", allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        reason = " ".join(str(error).split())
        raise FileNotFoundError(f"{source} is neither a folder nor a dataset on the Hub ({reason}).") from error


def prepare(source: str, *, allow_missing: bool = False) -> Prepared:
    """Make the documents and videos of TGIF-QA's frame questions, and put them where the tasks look for them.

    Parameters
    ----------
    source
        A folder or the id of a dataset on the Hub, in one of the two layouts above.
    allow_missing
        Leave out questions whose video is missing or broken, instead of refusing.

    Returns
    -------
    Prepared
        What was made. An earlier preparation is replaced at the end, or kept if this one fails.

    Raises
    ------
    FileNotFoundError
        If question files or videos are missing, with their names.
    ValueError
        If a question file is damaged.
    """
    folder = fetch(source)
    documents, files = read_documents(folder), find_videos(folder)
    final = dataset_folder()
    with folder_atomically(final) as part:
        (part / VIDEOS).mkdir()
        names = list(dict.fromkeys(document.video for document in documents))
        used: dict[str, Path] = {}
        bad: dict[str, str] = {}
        for name in tqdm(names, desc="videos", disable=None):
            try:
                used[name] = place_video(files.get(name, []), part / VIDEOS / f"{name}.mp4")
            except ValueError as error:
                bad[name] = str(error)
        kept = [document for document in documents if document.video in used]
        if bad and not (allow_missing and kept):
            archives = "" if files else " Unpack archives first." * any(folder.rglob("*.zip"))
            raise FileNotFoundError(
                f"{len(bad)} of {len(names)} videos are missing or broken below {folder}: "
                f"{', '.join(f'{name} ({bad[name]})' for name in list(bad)[:5])}{', ...' if len(bad) > 5 else ''}."
                f"{archives} "
                "--allow-missing leaves their questions out."
            )
        write_documents(kept, part)
    converted = sum(path.suffix.lower() != ".mp4" for path in used.values())
    return Prepared(final, len(kept), len(used), converted, len(documents) - len(kept))


def write_documents(documents: Iterable[Document], folder: Path) -> None:
    """Write documents in the form of each harness."""
    columns = ("question_id", "video", "question", "answer")
    rows = [{column: getattr(document, column) for column in columns} for document in documents]
    (folder / DOCUMENTS).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    with (folder / TABLE).open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, columns, delimiter="\t", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
