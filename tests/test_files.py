"""Files appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from vtw_eval.files import folder_atomically, write_atomically


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "new" / "file"
    write_atomically(file, "é")
    write_atomically(file, b"two")
    assert file.read_bytes() == b"two"
    assert file.stat().st_mode & 0o777 == 0o644
    assert list(file.parent.iterdir()) == [file]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    write_atomically(file, "old")

    def fail(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_atomically(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_takes_the_place_of_the_old_one_only_when_whole(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    with folder_atomically(folder) as part:
        (part / "one").touch()
        assert not folder.exists()
    with pytest.raises(FileNotFoundError), folder_atomically(folder) as part:
        (part / "no" / "such" / "folder").touch()
    assert [file.name for file in folder.iterdir()] == ["one"]
    with folder_atomically(folder) as part:
        (part / "two").touch()
    assert [file.name for file in folder.iterdir()] == ["two"]
    with folder_atomically(folder, replace=False) as part:  # another process was faster
        (part / "three").touch()
    assert [file.name for file in folder.iterdir()] == ["two"]
    assert list(folder.parent.iterdir()) == [folder]
