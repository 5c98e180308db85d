"""Markdown tables of a document, regenerated from the JSON of the results."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from promptembedder.errors import DataError
from promptembedder.storage import write_text

__all__ = ["markdown_table", "regenerate"]

Markdown = Callable[[Mapping[str, Any]], str]


def regenerate(document: Path, results: Path, pages: Mapping[str, Markdown]) -> list[str]:
    """Replace the text between `<!-- NAME -->` and `<!-- end NAME -->` by the page of `results/NAME.json`.

    A name without markers in the document, or without a file, is skipped. Return the replaced names.

    Raises:
        DataError: If the document or a file cannot be read, an end marker is missing, or nothing was replaced.
    """
    text, done = _read(document), []
    for name, page in pages.items():
        begin, end, source = f"<!-- {name} -->", f"<!-- end {name} -->", results / f"{name}.json"
        if begin not in text or not source.is_file():
            continue
        head, _, rest = text.partition(begin)
        if end not in rest:
            raise DataError(f"{document} has {begin} and no {end}. Add it after the table.")
        try:
            content = json.loads(_read(source))
        except ValueError as error:
            raise DataError(f"{source} is no JSON ({error}). Run the benchmark again.") from error
        text = f"{head}{begin}\n\n{page(content).strip()}\n\n{end}{rest.partition(end)[2]}"
        done.append(name)
    if not done:
        raise DataError(f"{document} has no marker that fits a file in {results}. Known: {', '.join(pages)}.")
    write_text(document, text)
    return done


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table. The first column is left-aligned, the others are right-aligned."""
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    cells = ([cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror}). Check the path.") from error
