"""Rows for a table from a file of texts, embedded on the way."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from promptembedder.data import COLUMN_KINDS, TextRow, column_value, read_rows, read_texts
from promptembedder.errors import DataError
from promptembedder.model import Encoder
from promptembedder.search.table_schema import TableFacts, row_batch

__all__ = ["CorpusRows"]


@dataclass(frozen=True, kw_only=True)
class CorpusRows:
    """The texts of a file, the vectors an encoder makes of them, and columns of metadata.

    Attributes:
        path: As `read_texts` reads it; no pipe, since it is read more than once.
        load_encoder: Called when the first vector is needed, after all rows have been looked at.
        facts: What the encoder is, and the instruction it gets.
        metadata: The kind of each column that is taken along.
        chunk_rows: Rows held in memory and embedded together.
        on_rows: Called after each chunk with the number of its rows.
    """

    path: Path
    load_encoder: Callable[[], Encoder]
    facts: TableFacts
    metadata: Mapping[str, str] = field(default_factory=dict)
    text_column: str | None = None
    id_column: str | None = None
    chunk_rows: int = 512
    on_rows: Callable[[int], None] = lambda _: None

    def ids(self) -> Iterator[Sequence[str]]:
        """The ids, a chunk at a time.

        Raises:
            DataError: As in `read_texts`; the file is a pipe; or a row lacks a column of metadata, or holds what does
                not fit its type.
        """
        for chunk in self._chunks():
            yield [row.id for row, _ in chunk]

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows as a table takes them, their vectors scaled to length 1.

        Raises:
            DataError: As in `ids`; or a vector is not finite, or zero.
        """
        encoder = self.load_encoder()
        for chunk in self._chunks():
            texts = [row.text for row, _ in chunk]
            vectors = np.asarray(
                encoder.encode(texts, prompt=self.facts.instruction, show_progress_bar=False), dtype=np.float32
            )
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors /= np.where(lengths == 0, 1, lengths)
            columns = {
                name: pa.array([values[name] for _, values in chunk], type=COLUMN_KINDS[kind])
                for name, kind in self.metadata.items()
            }
            yield row_batch([row.id for row, _ in chunk], vectors, pa.array(texts, type=pa.string()), columns)
            self.on_rows(len(chunk))

    def _chunks(self) -> Iterator[list[tuple[TextRow, dict[str, Any]]]]:
        if self.path.exists() and not self.path.is_file() and not self.path.is_dir():
            raise DataError(f"{self.path} is no regular file, and it is read more than once. Save it as a file first.")
        texts = read_texts(self.path, text_column=self.text_column, id_column=self.id_column)
        # the file once more beside it: what reads texts hands on no other columns
        values = (self._values(row, number) for number, row in enumerate(read_rows(self.path), start=1))
        rows = zip(texts, values, strict=True)
        while chunk := list(islice(rows, self.chunk_rows)):
            yield chunk

    def _values(self, row: Mapping[str, Any], number: int) -> dict[str, Any]:
        values = {}
        for name, kind in self.metadata.items():
            place = f"{self.path}, row {number}"
            if name not in row:
                raise DataError(
                    f"{place} has no column {name!r} for the metadata: found {', '.join(row) or 'no columns'}. "
                    "Mend the row, or name another column."
                )
            try:
                values[name] = column_value(row[name], kind)
            except (ValueError, TypeError) as error:
                shown = f"{str(row[name])[:40]!r} ({type(row[name]).__name__})"
                raise DataError(
                    f"{place}: column {name!r} holds {shown}, which is no {kind}. "
                    f"Mend the row, or name another type: --metadata {name}:TYPE."
                ) from error
        return values
