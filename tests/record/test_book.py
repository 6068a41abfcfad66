"""The answer book keeps what was written whole, whoever wrote it and however that ended."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vtw_eval.record.book import Book, Entry, book_folder, key_of, remove_books


def entry(key: str, text: str = "a disc") -> Entry:
    counts: dict[str, int | tuple[int, ...]] = {"input_tokens": 9, "tokens_per_layer": (9, 5)}
    return Entry(key=key, text=text, output_tokens=3, counts=counts, notes=("turned",), rows=2)


def test_what_several_have_written_is_read_back(tmp_path: Path) -> None:
    first, second = Book(tmp_path / "book"), Book(tmp_path / "book")
    first.add([])
    assert not (tmp_path / "book").exists(), "nothing is made for nothing"
    first.add([entry("a"), entry("b", "two\nlines \u2028 é")])
    second.add([entry("c")])
    first.add([entry("d")])
    assert len(list((tmp_path / "book").iterdir())) == 2
    found = Book(tmp_path / "book")
    assert (len(found), found.spoilt) == (4, 0)
    assert found.get("b") == entry("b", "two\nlines \u2028 é")
    assert ("c" in found, "c" in first, found.get("e")) == (True, False, None)


@pytest.mark.parametrize("cut", [1, 40, -1])
def test_a_torn_last_line_counts_as_not_written(tmp_path: Path, cut: int) -> None:
    book = Book(tmp_path)
    book.add([entry("a"), entry("b")])
    (file,) = tmp_path.iterdir()
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + lines[1][:cut].removesuffix(b"}"))
    again = Book(tmp_path)
    assert (len(again), again.spoilt) == (1, 1)
    again.add([entry("b")])
    assert [len(Book(tmp_path)), Book(tmp_path).get("b")] == [2, entry("b")], "what follows is whole"


def test_a_line_that_somebody_changed_is_not_believed(tmp_path: Path) -> None:
    Book(tmp_path).add([entry("a", "yes"), entry("b", "yes")])
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes().replace(b"yes", b"no!", 1))
    book = Book(tmp_path)
    assert ("a" in book, "b" in book, book.spoilt) == (False, True, 1)


def test_books_of_what_is_done_are_removed(tmp_path: Path) -> None:
    for name in ("old", "new"):
        Book(book_folder(tmp_path, name)).add([entry("a")])
    remove_books(tmp_path, {"new"})
    assert os.listdir(tmp_path / "books") == ["new"]
    remove_books(tmp_path, set())
    assert os.listdir(tmp_path) == []
    remove_books(tmp_path, set())


def test_keys_tell_what_decides_apart() -> None:
    assert key_of("a", ["b"], {"x": 1, "y": 2}) == key_of("a", ["b"], {"y": 2, "x": 1})
    assert len({key_of("ab", "c"), key_of("a", "bc"), key_of(["a", "bc"]), key_of("a", "bc", None)}) == 4
