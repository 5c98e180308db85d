"""Laws of finding files: paths, folders, globs and URLs stand for the same files."""

import gzip
from pathlib import Path

import fsspec
import pytest

from promptembedder.data import Position, SourceFile, find_sources, scan_rows
from promptembedder.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.txt", "a.jsonl", "deep/c.csv", "deep/.hidden.txt", "_started/d.txt", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text\none\n")
    return tmp_path


def names(found: list[SourceFile], folder: Path) -> list[str]:
    return [str(Path(source.location).relative_to(folder)) for source in found]


def test_a_folder_stands_for_all_files_in_and_below_it_that_can_be_read(folder: Path) -> None:
    assert names(find_sources([folder]), folder) == ["a.jsonl", "b.txt", "deep/c.csv"]


def test_a_glob_stands_for_what_it_matches_and_the_order_of_patterns_is_kept(folder: Path) -> None:
    assert names(find_sources([str(folder / "deep/*"), folder / "b.txt"]), folder)[-1] == "b.txt"
    assert names(find_sources([str(folder / "*.t?t"), str(folder / "**/*.csv")]), folder) == ["b.txt", "deep/c.csv"]


def test_a_path_stays_as_it_was_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "odd*[1].txt").write_text("x\n")
    assert [source.location for source in find_sources(["b.txt", "odd*[1].txt", "none.txt"])] == [
        "b.txt",
        "odd*[1].txt",
        "none.txt",
    ]


def test_a_url_is_read_like_a_file_from_any_place(folder: Path) -> None:
    store = fsspec.filesystem("memory")
    store.pipe("/bucket/a.txt", b"one\ntwo\nthree\n")
    store.pipe("/bucket/b.txt.gz", gzip.compress(b"four\nfive\n"))
    found = find_sources(["memory://bucket"])
    assert [source.name for source in found] == ["a.txt", "b.txt.gz"]
    for source in found:
        source.check()
        rows = list(scan_rows(source))
        for row in rows:
            assert [again.content for again in scan_rows(source, row.start)] == [
                each.content for each in rows[row.start.row :]
            ]
    assert [row.content for row in scan_rows(found[1], Position(1, 1, 5))] == [{"text": "five"}]
    assert find_sources(["memory://bucket/*.txt"]) == found[:1]
    with pytest.raises(DataError, match="does not exist. Check the URL"):
        find_sources(["memory://bucket/none.txt"])[0].check()


def test_what_stands_for_nothing_or_comes_twice_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"\*\.tsv stands for no file that a reader knows"):
        find_sources([str(folder / "*.tsv")])
    with pytest.raises(DataError, match="b.txt is named twice"):
        find_sources([folder / "b.txt", str(folder / "b.*")])
    with pytest.raises(DataError, match="there are no files to read"):
        find_sources([])
    with pytest.raises(DataError, match=r"nowhere://x/\*\.txt cannot be listed"):
        find_sources(["nowhere://x/*.txt"])
    with pytest.raises(DataError, match="notes.md has an ending that no reader knows"):
        find_sources([folder / "notes.md"])[0].check()
