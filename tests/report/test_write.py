"""A report as files: format by suffix, no picture without points, none that is left over, places checked first."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.report.made import make_store
from vtw_eval.cli import app
from vtw_eval.record.store import Store
from vtw_eval.report import make as making

METHODS = ["baseline", "vtw,k=2", "vtw,k=4"]


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["report", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.stderr


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "sweep", METHODS, tasks=["shapes_vqa"], count=8)


@pytest.mark.parametrize(
    ("name", "begin"),
    [
        ("x.md", "# sweep"),
        ("x.html", "<!DOCTYPE html>"),
        ("x.HTM", "<!DOCTYPE html>"),
        ("x.tex", "% Needs"),
        ("x.csv", "model,method,task"),
    ],
)
def test_the_suffix_decides_the_format(name: str, begin: str, store: Store, tmp_path: Path) -> None:
    run(store.root, "-o", tmp_path / name)
    assert (tmp_path / name).read_text().startswith(begin)


def test_a_suffix_that_says_nothing_or_otherwise_is_refused(store: Store, tmp_path: Path) -> None:
    assert "'.pdf' is of no format of a report: take .md, " in run(store.root, "-o", tmp_path / "x.pdf", code=2)
    assert "'' is of no format" in run(store.root, "-o", tmp_path / "x", code=2)
    assert "would be html, but --format says latex" in run(
        store.root, "-o", tmp_path / "x.html", "--format", "latex", code=2
    )
    assert [path.name for path in tmp_path.iterdir()] == ["sweep"]
    run(store.root, "-o", tmp_path / "x.txt", "--format", "html")
    assert (tmp_path / "x.txt").read_text().startswith("<!DOCTYPE html>")


def test_pictures_of_an_older_report_go_and_others_stay(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(store.root, "-o", out / "a.md")
    run(store.root, "-o", out / "b.tex")
    (out / "plots" / "mine.png").write_bytes(b"not of a report")
    fewer = make_store(tmp_path / "fewer", ["baseline", "vtw,k=2"], tasks=["shapes_vqa"], count=8, seed=1)
    told = run(fewer.root, "-o", out / "a.md")
    assert "new now, make them anew: b.tex." in told
    names = {path.name for path in (out / "plots").iterdir()}
    flops, versus_k = ({f"tiny-{name}.{kind}" for kind in ("png", "svg")} for name in ("flops", "vtw-position-keep-k"))
    assert names == flops | versus_k | {"mine.png"}  # b.tex still shows both
    assert "anew" not in run(fewer.root, "-o", out / "b.tex")
    assert {path.name for path in (out / "plots").iterdir()} == flops | {"mine.png"}


def test_no_picture_is_drawn_where_nothing_is_done(store: Store, tmp_path: Path) -> None:
    for spec in store.index.cells:
        if spec.method != "baseline":
            (store.folder(spec) / "cell.json").unlink()
    run(store.root, "-o", tmp_path / "out" / "x.md")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["summary.json", "x.md"]


def test_a_place_that_cannot_be_written_is_told_before_the_work(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("results were read")

    monkeypatch.setattr(making, "read_results", never)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.md").mkdir()

    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    messages = [
        run(store.root, "-o", tmp_path / "file" / "deep" / "x.md", code=1),
        run(store.root, "-o", tmp_path / "folder.md", code=1),
    ]
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    messages.append(run(store.root, "-o", tmp_path / "new" / "x.md", code=1))
    for message, words in zip(messages, ["file is a file.", "is a folder", "No space left on device"], strict=True):
        assert words in message and message.count("\n") == 1
